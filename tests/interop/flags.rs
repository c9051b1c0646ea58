//! Every flag the export advertises, seen by nbdinfo, and a test that relies on it.

use crate::harness::stage::{Plan, Stage};
use crate::harness::tools;
use crate::{python, uri};
use serde_json::Value;
use std::process::Command;

#[test]
fn nbdinfo_shows_the_flags() {
    let mut plan = Plan::new("C");
    plan.tcp_export = true;
    let stage = Stage::in_sync(plan);
    let tcp = format!("nbd://{}/r0", stage.tcp_export(0));
    for uri in [uri(&stage, 0), tcp] {
        let json = tools::run(Command::new("nbdinfo").args(["--json", &uri]));
        let info: Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(info["protocol"], "newstyle-fixed");
        assert_eq!(info["structured"], true);
        let export = &info["exports"][0];
        for flag in [
            "can_cache",
            "can_df",
            "can_fast_zero",
            "can_flush",
            "can_fua",
            "can_multi_conn",
            "can_trim",
            "can_zero",
        ] {
            assert_eq!(export[flag], true, "{flag} in {export:#}");
        }
        assert_eq!(export["is_read_only"], false);
        assert_eq!(export["block_size_minimum"], 512);
        assert_eq!(
            export["export-size"].as_u64(),
            Some(stage.nodes[0].data_size())
        );
        let contexts = export["contexts"].as_array().expect("contexts");
        for context in ["base:allocation", "twinblk:dirty"] {
            assert!(
                contexts.iter().any(|c| c == context),
                "{context} in {contexts:?}"
            );
        }
    }
    let list =
        tools::run(Command::new("nbdinfo").args(["--list", &uri(&stage, 0).replace("/r0?", "/?")]));
    assert!(list.contains("export=\"r0\""), "{list}");
    // An export that is not there.
    let other = uri(&stage, 0).replace("/r0?", "/other?");
    let output = tools::try_run(Command::new("nbdinfo").arg(other));
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains("other") || text.contains("no export"),
        "{text}"
    );
}

#[test]
fn a_secondary_refuses_libnbd_and_nbdinfo_with_its_reason() {
    let stage = Stage::in_sync(Plan::new("C"));
    let output = tools::try_run(Command::new("nbdinfo").arg(uri(&stage, 1)));
    assert!(!output.status.success());
    // libnbd shows the server's words in its debugging output.
    let output = tools::try_run(
        Command::new("nbdinfo")
            .env("LIBNBD_DEBUG", "1")
            .arg(uri(&stage, 1)),
    );
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains("Secondary") && text.contains("alpha"),
        "{text}"
    );
}

#[test]
fn read_write_flush_fua_trim_zero_cache() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    python(
        &uri(&stage, 0),
        r"
a = bytes(range(256)) * 16
h.pwrite(a, 0)
assert plain.pread(4096, 0) == a
plain.pwrite(a, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(4096, 4096) == a
h.flush(); plain.flush()
# DF: one chunk, even over a hole.
chunks = []
h.pread_structured(65536, 0, lambda b, o, s, e: chunks.append((len(b), o, s)), nbd.CMD_FLAG_DF)
assert chunks == [(65536, 0, nbd.READ_DATA)], chunks
h.trim(4096, 0)
assert h.pread(4096, 0) == bytes(4096), 'a trimmed range reads as zeroes'
h.pwrite(a * 16, 0)
h.zero(8192, 4096)
assert h.pread(65536, 0) == a + bytes(8192) + a * 13
h.zero(8192, 16384, nbd.CMD_FLAG_NO_HOLE)
h.zero(8192, 32768, nbd.CMD_FLAG_FUA)
assert h.pread(8192, 16384) == bytes(8192)
assert h.pread(8192, 32768) == bytes(8192)
e = errno_of(lambda: h.zero(8192, 49152, nbd.CMD_FLAG_FAST_ZERO))
assert e in (None, 'ENOTSUP', 'EOPNOTSUPP'), e
h.cache(65536, 0)
# 512-byte requests at 512-byte places.
h.pwrite(b'x' * 512, 65536 + 512)
assert h.pread(1536, 65536) == bytes(512) + b'x' * 512 + bytes(512)
# The largest request libnbd sends, and one over many blocks.
big = os.urandom(4 << 20)
h.pwrite(big, 1 << 20)
assert plain.pread(4 << 20, 1 << 20) == big
",
    );
    stage.wait_in_sync();
    stage.stop_and_compare();
}

#[test]
fn requests_that_cannot_be_are_refused_and_the_connection_lives() {
    let stage = Stage::in_sync(Plan::new("C"));
    python(
        &uri(&stage, 0),
        r"
size = h.get_size()
a = b'a' * 4096
for c in (h, plain):
    assert errno_of(lambda: c.pwrite(a, size)) == 'ENOSPC'
    assert errno_of(lambda: c.pwrite(a, size - 512)) == 'ENOSPC'
    assert errno_of(lambda: c.pread(4096, size - 512)) == 'EINVAL'
    assert errno_of(lambda: c.pread(512, 2**63)) == 'EINVAL'
    assert errno_of(lambda: c.trim(4096, size)) == 'EINVAL'
    assert errno_of(lambda: c.zero(4096, size)) == 'ENOSPC'
    # Less than the advertised minimum of 512 bytes, or not at a multiple of it: refused, always.
    assert errno_of(lambda: c.pwrite(b'b' * 100, 0)) == 'EINVAL'
    assert errno_of(lambda: c.pwrite(b'b' * 512, 100)) == 'EINVAL'
    assert errno_of(lambda: c.pread(100, 0)) == 'EINVAL'
    assert errno_of(lambda: c.trim(100, 0)) == 'EINVAL'
    assert errno_of(lambda: c.zero(512, 1)) == 'EINVAL'
    # Large ones too: the answer comes when their payload has been read.
    big = bytes(5 << 20)
    assert errno_of(lambda: c.pwrite(big[:1 << 20], size - 512)) == 'ENOSPC'
    assert errno_of(lambda: c.pwrite(big[:(1 << 20) + 1], 0)) == 'EINVAL'
    assert errno_of(lambda: c.pwrite(big, 0)) == 'EINVAL'
    c.pwrite(a, 0)
    assert c.pread(4096, 0) == a
assert errno_of(lambda: plain.pread_structured(512, 0, lambda *_: 0, nbd.CMD_FLAG_DF)) == 'EINVAL'
",
    );
}

#[test]
fn many_requests_in_flight_are_answered_out_of_order_on_many_connections() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    python(
        &uri(&stage, 0),
        r"
assert h.can_multi_conn()
handles = [connect(i % 2 == 0) for i in range(8)]
pending, order, datas = {}, [], {}
for i in range(512):
    c = handles[i % 8]
    b = nbd.Buffer.from_bytearray(bytearray(os.urandom(4096 * (1 + i % 5))))
    datas[i] = b
    cookie = c.aio_pwrite(b, i * 32768, lambda err, i=i: order.append((i, err.value if hasattr(err, 'value') else err)) or 1)
    pending[i] = (c, cookie)
while len(order) < 512:
    for c in handles:
        if c.aio_in_flight():
            c.poll(1)
assert all(e == 0 for _, e in order), order
# A flush on one connection covers the others (MULTI_CONN); each sees what the others wrote.
handles[0].flush()
for i in range(512):
    got = handles[(i + 3) % 8].pread(len(datas[i]), i * 32768)
    assert got == bytes(datas[i].to_bytearray()), i
",
    );
    stage.wait_in_sync();
    stage.stop_and_compare();
}

#[test]
fn block_status_shows_holes_and_what_the_peer_lacks() {
    let mut plan = Plan::new("C");
    plan.tmpfs = true;
    let mut stage = Stage::in_sync(plan);
    let status = r"
def extents(context, length, offset=0):
    found = []
    def f(metacontext, offset, entries, err):
        if metacontext == context:
            found.extend(zip(entries[::2], entries[1::2]))
    h.block_status(length, offset, f)
    return found
";
    python(
        &uri(&stage, 0),
        &format!(
            "{status}
h.trim(8 << 20, 0)
h.pwrite(b'z' * (1 << 20), 1 << 20)
h.flush()
e = extents('base:allocation', 3 << 20)
assert e == [(1 << 20, 3), (1 << 20, 0), (1 << 20, 3)], e
assert extents('twinblk:dirty', 8 << 20) == [(8 << 20, 0)]
"
        ),
    );
    stage.nodes[1].kill();
    stage.nodes[0].wait("alone", |s| s["peers"][0]["connection"] != "Connected");
    python(
        &uri(&stage, 0),
        &format!(
            "{status}
h.pwrite(b'y' * 8192, 4 << 20)
e = extents('twinblk:dirty', 1 << 20, 4 << 20)
assert e == [(8192, 1), ((1 << 20) - 8192, 0)], e
"
        ),
    );
    stage.nodes[1].start();
    stage.wait_in_sync();
    python(
        &uri(&stage, 0),
        &format!("{status}\nassert extents('twinblk:dirty', 8 << 20) == [(8 << 20, 0)]\n"),
    );
    stage.stop_and_compare();
}
