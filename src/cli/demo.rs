//! `twinblk demo`: the whole story on one machine, told step by step. Two nodes, writes through
//! NBD, a crash of the Primary, a failover, its return, and a comparison of both copies.

use super::create_md;
use super::demo_nbd::NbdClient;
use super::demo_nodes::{Node, Stage};
use super::demo_watch::{connect, error, in_sync, io, order, say, show, until};
use super::exit::CliError;
use super::human::size;
use crate::api::{Order, ResourceStatus};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Size of each disk, metadata included.
const DISK: u64 = 64 << 20;
/// What one request writes.
const CHUNK: usize = 64 << 10;
const STEPS: u32 = 8;

/// Runs the demo; whatever happens, nothing is left behind.
pub(super) fn run() -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| error(format!("the demo cannot start: {e}")))?;
    runtime.block_on(async {
        tokio::select! {
            result = whole() => result,
            () = interrupted() => Err(error("interrupted; everything is cleaned up")),
        }
    })
}

/// Ctrl-C, or somebody asks us to end.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let [Ok(mut a), Ok(mut b), Ok(mut c)] = kinds.map(signal) else {
        return std::future::pending().await;
    };
    tokio::select! { _ = a.recv() => {}, _ = b.recv() => {}, _ = c.recv() => {} }
}

async fn whole() -> Result<(), CliError> {
    let start = Instant::now();
    let stage = Stage::new()?;
    say(
        "Two nodes, alpha and bravo, on this machine. No root, no kernel module, no configuration.",
    );
    say(&format!(
        "Everything is in {} and is removed at the end.",
        stage.directory.display()
    ));
    let [alpha, bravo] = stage.nodes(DISK)?;
    let mut story = Story {
        stage,
        alpha,
        bravo,
        image: Vec::new(),
        step: 0,
    };
    match story.tell().await {
        Ok(()) => {
            let seconds = start.elapsed().as_secs_f32();
            say(&format!(
                "\nDone in {seconds:.1} s: nothing was lost, both copies are identical."
            ));
            Ok(())
        }
        Err(mut error) => {
            let logs = [story.alpha.last_words(), story.bravo.last_words()];
            error.next = format!("{}\n{}", error.next, logs.join("\n"))
                .trim()
                .to_owned();
            Err(error)
        }
    }
}

/// The nodes, and what the device must hold.
struct Story {
    // Dropped in this order: first the daemons, then the directory they work in.
    alpha: Node,
    bravo: Node,
    stage: Stage,
    /// Every byte a client has written and had confirmed.
    image: Vec<u8>,
    step: u32,
}

impl Story {
    async fn tell(&mut self) -> Result<(), CliError> {
        self.bring_up().await?;
        self.write_and_look().await?;
        let acked = self.crash_under_load().await?;
        self.fail_over(acked).await?;
        self.come_back().await?;
        self.compare().await
    }

    fn chapter(&mut self, text: &str) {
        self.step += 1;
        say(&format!("\n[{}/{STEPS}] {text}", self.step));
    }

    async fn bring_up(&mut self) -> Result<(), CliError> {
        self.chapter("Each node gets a disk (a sparse file of 64 MiB) and metadata on it:");
        let config = self.stage.config();
        for node in [&mut self.alpha, &mut self.bravo] {
            say(&format!("      {}$ twinblk create-md r0", node.name));
            create_md::create(&config, Some(node.name), "r0", false, 1)?;
            node.start().await?;
        }
        self.chapter("The daemons open their disks and find each other:");
        for node in [&self.alpha, &self.bravo] {
            order(node, "up", "up", Order::default()).await?;
        }
        let connected = |r: &ResourceStatus| r.peers.iter().all(|p| p.connection == "Connected");
        until(&self.alpha, "connected to bravo", connected).await?;
        self.chapter("alpha is told that its data count; bravo becomes an exact copy:");
        let force = Order {
            force: true,
            ..Order::default()
        };
        order(&self.alpha, "primary", "primary --force", force).await?;
        let took = Instant::now();
        let status = until(&self.alpha, "in sync", in_sync).await?;
        let bytes = status.volumes.first().map_or(0, |v| v.size);
        let ms = took.elapsed().as_millis();
        say(&format!(
            "      first full sync of {} took {ms} ms",
            size(bytes)
        ));
        self.image = vec![0; usize::try_from(bytes).map_err(|_| error("a disk beyond memory"))?];
        Ok(())
    }

    async fn write_and_look(&mut self) -> Result<(), CliError> {
        self.chapter("A client writes 16 MiB through NBD on alpha, flushes, and reads them back:");
        let mut client = connect(&self.alpha).await?;
        if client.size != self.image.len() as u64 {
            return Err(error(format!("the export has {} bytes", client.size)));
        }
        for chunk in 0..256 {
            write(&mut self.image, &mut client, chunk, 1)
                .await
                .map_err(|e| io("a write", &e))?;
        }
        client.flush().await.map_err(|e| io("a flush", &e))?;
        self.check(&mut client, 256).await?;
        client.close().await;
        if self.first_difference(&self.bravo)?.is_some() {
            return Err(error(
                "bravo's disk does not hold what was written on alpha",
            ));
        }
        say("      and bravo's disk holds the same bytes already:");
        show(&self.alpha).await
    }

    /// Writes until the Primary is killed; returns how many chunks were confirmed.
    async fn crash_under_load(&mut self) -> Result<usize, CliError> {
        self.chapter("alpha is killed (kill -9) in the middle of more writes:");
        let mut client = connect(&self.alpha).await?;
        let mut timer = std::pin::pin!(tokio::time::sleep(Duration::from_millis(150)));
        let (mut acked, mut alive) = (0, true);
        loop {
            let chunk = 256 + acked % 256;
            let mut write = std::pin::pin!(write(&mut self.image, &mut client, chunk, 2 + acked));
            let result = tokio::select! {
                result = &mut write => result,
                () = &mut timer, if alive => {
                    // Now, with this write under way.
                    self.alpha.kill();
                    alive = false;
                    write.await
                }
            };
            match result {
                Ok(()) => acked += 1,
                Err(_) => break,
            }
        }
        if alive {
            return Err(error("a write failed before anybody was killed"));
        }
        say(&format!(
            "      {acked} writes of {} had been confirmed when it died",
            size(CHUNK as u64)
        ));
        Ok(acked)
    }

    async fn fail_over(&mut self, acked: usize) -> Result<(), CliError> {
        let gone = |r: &ResourceStatus| r.peers.iter().all(|p| p.connection != "Connected");
        until(&self.bravo, "aware that alpha is gone", gone).await?;
        self.chapter("bravo takes over:");
        order(&self.bravo, "primary", "primary", Order::default()).await?;
        let mut client = connect(&self.bravo).await?;
        // The write that was not confirmed may be there or not; it is written again.
        write(&mut self.image, &mut client, 256 + acked % 256, 2 + acked)
            .await
            .map_err(|e| io("a write", &e))?;
        self.check(&mut client, 512).await?;
        say("      every confirmed write is there. The client goes on, on bravo, with 8 MiB:");
        for chunk in 200..328 {
            write(&mut self.image, &mut client, chunk, 3)
                .await
                .map_err(|e| io("a write", &e))?;
        }
        client.flush().await.map_err(|e| io("a flush", &e))?;
        client.close().await;
        show(&self.bravo).await
    }

    async fn come_back(&mut self) -> Result<(), CliError> {
        self.chapter("alpha returns. It was Primary, but bravo's data are newer: it catches up.");
        self.alpha.start().await?;
        order(&self.alpha, "up", "up", Order::default()).await?;
        let status = until(&self.bravo, "in sync", in_sync).await?;
        say("      both are UpToDate again, and bravo stayed Primary all the time:");
        if status.role != "Primary" {
            return Err(error(format!("bravo has become {}", status.role)));
        }
        show(&self.bravo).await
    }

    async fn compare(&mut self) -> Result<(), CliError> {
        self.chapter("Both are stopped and their disks are compared byte by byte:");
        for node in [&mut self.bravo, &mut self.alpha] {
            order(node, "down", "down", Order::default()).await?;
            node.stop().await;
        }
        for node in [&self.alpha, &self.bravo] {
            match self.first_difference(node)? {
                None => say(&format!(
                    "      {}'s disk: {} bytes, exactly what the client wrote",
                    node.name,
                    self.image.len()
                )),
                Some(at) => {
                    let name = node.name;
                    return Err(error(format!(
                        "{name}'s disk differs from what was written at {at}"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Reads the first chunks back and compares them with what was written.
    async fn check(&self, client: &mut NbdClient, chunks: usize) -> Result<(), CliError> {
        let mut data = vec![0; CHUNK];
        for offset in (0..chunks).map(|n| n * CHUNK) {
            client
                .read(offset as u64, &mut data)
                .await
                .map_err(|e| io("a read", &e))?;
            if data != self.image[offset..offset + CHUNK] {
                return Err(error(format!(
                    "what was written at {offset} reads back differently"
                )));
            }
        }
        Ok(())
    }

    /// Where a node's disk differs from what was written.
    fn first_difference(&self, node: &Node) -> Result<Option<u64>, CliError> {
        let file = std::fs::File::open(&node.disk).map_err(|e| io("the disk", &e))?;
        let mut data = vec![0; self.image.len()];
        file.read_exact_at(&mut data, 0)
            .map_err(|e| io("the disk", &e))?;
        Ok(difference(&data, &self.image))
    }
}

/// Writes a chunk and remembers it in `image` when it is confirmed.
async fn write(
    image: &mut [u8],
    client: &mut NbdClient,
    chunk: usize,
    round: usize,
) -> std::io::Result<()> {
    let offset = chunk * CHUNK;
    let data = pattern(chunk, round);
    client.write(offset as u64, &data).await?;
    image[offset..offset + CHUNK].copy_from_slice(&data);
    Ok(())
}

fn difference(a: &[u8], b: &[u8]) -> Option<u64> {
    if a == b {
        return None;
    }
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    u64::try_from(same).ok()
}

/// Bytes that tell where and in which round they were written.
fn pattern(chunk: usize, round: usize) -> Vec<u8> {
    let mut x = ((chunk as u64) << 32 | round as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut data = Vec::with_capacity(CHUNK);
    while data.len() < CHUNK {
        // xorshift
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        data.extend(x.to_le_bytes());
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_and_round_has_its_own_bytes() {
        let first = pattern(0, 1);
        assert_eq!(first.len(), CHUNK);
        assert_eq!(first, pattern(0, 1));
        for other in [pattern(1, 1), pattern(0, 2), pattern(1, 0)] {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn a_difference_is_found_where_it_is() {
        assert_eq!(difference(b"abc", b"abc"), None);
        assert_eq!(difference(b"abc", b"abd"), Some(2));
        assert_eq!(difference(b"abc", b"xbc"), Some(0));
    }
}
