"""A plot without a library: bars per load, relative to the best of that load."""

import html
import statistics

COLOURS = ["#0b3d91", "#5b4fcf", "#2e6fdb", "#7fb0ff", "#b9d3ff", "#777777", "#b5651d", "#d9a066", "#8f3b76"]


def svg(results, loads, about):
    """The picture as text."""
    peers = [p for p in results if results[p]]
    bar, gap, left, width = 14, 22, 190, 560
    rows = len(loads)
    block = bar * len(peers) + gap
    height = 70 + rows * block
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 180}" height="{height}" '
           'font-family="sans-serif" font-size="12">',
           f'<rect width="100%" height="100%" fill="white"/>',
           f'<text x="10" y="20" font-size="15">twinblk side by side, {about["date"]}, '
           f'{about["cores"]} cores, Linux {html.escape(about["kernel"])}; medians of '
           f'{about["rounds"]} rounds</text>']
    for i, peer in enumerate(peers):
        x = 10 + i % 5 * 188
        y = 38 + i // 5 * 16
        out.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{COLOURS[i % len(COLOURS)]}"/>'
                   f'<text x="{x + 14}" y="{y}">{html.escape(peer)}</text>')
    for row, load in enumerate(loads):
        unit = "MiB/s" if load.startswith("1M") else "iops"
        values = {p: statistics.median(r[unit] for r in results[p][load])
                  for p in peers if results[p].get(load)}
        most = max(values.values(), default=1) or 1
        top = 70 + row * block
        out.append(f'<text x="10" y="{top + bar * len(peers) / 2 + 4}">{html.escape(load)}</text>')
        for i, peer in enumerate(peers):
            if peer not in values:
                continue
            y = top + i * bar
            length = width * values[peer] / most
            out.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 2}" '
                       f'fill="{COLOURS[i % len(COLOURS)]}"/><text x="{left + length + 4:.1f}" '
                       f'y="{y + bar - 4}" font-size="10">{values[peer]:,.0f} {unit}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"
