//! What a story does with a pair: requests, orders, looks.

use super::*;

impl Pair {
    /// Submits a request without waiting; answers its tag.
    pub(crate) fn submit(
        &mut self,
        n: usize,
        kind: RequestKind,
        offset: u64,
        data: &[u8],
        len: u64,
        fua: bool,
    ) -> u64 {
        self.next_tag += 1;
        let tag = self.next_tag;
        let node = &mut self.nodes[n];
        let buf = (!matches!(
            kind,
            RequestKind::Flush | RequestKind::Trim | RequestKind::WriteZeroes { .. }
        ))
        .then(|| {
            node.next_buf += 1;
            node.bufs.insert(node.next_buf, data.to_vec());
            if kind == RequestKind::Read {
                node.reads.insert(tag, node.next_buf);
            }
            BufId(node.next_buf)
        });
        let request = ClientRequest {
            tag: ReqTag(tag),
            volume: V,
            kind,
            offset,
            len,
            fua,
            buf,
        };
        self.feed(n, Input::Client(request));
        tag
    }

    /// Submits a write of one byte value.
    pub(crate) fn submit_write(&mut self, n: usize, offset: u64, len: u64, value: u8) -> u64 {
        let data = vec![value; usize::try_from(len).expect("small")];
        self.submit(n, RequestKind::Write, offset, &data, len, false)
    }

    /// Writes and waits for the answer.
    pub(crate) fn write(&mut self, n: usize, offset: u64, len: u64, value: u8) {
        let tag = self.submit_write(n, offset, len, value);
        self.wait_reply(n, tag)
            .unwrap_or_else(|e| panic!("{e:?}\n{}", self.dump()));
    }

    pub(crate) fn flush(&mut self, n: usize) {
        let tag = self.submit(n, RequestKind::Flush, 0, &[], 0, false);
        self.wait_reply(n, tag).expect("a flush succeeds");
    }

    /// Reads and waits for the answer.
    pub(crate) fn read(&mut self, n: usize, offset: u64, len: u64) -> Vec<u8> {
        let tag = self.submit(n, RequestKind::Read, offset, &[], len, false);
        self.wait_reply(n, tag).expect("a read succeeds");
        let buf = self.nodes[n].reads.remove(&tag).expect("it was a read");
        self.nodes[n]
            .bufs
            .remove(&buf)
            .expect("a read's buffer stays the driver's")
    }

    /// What a read has found, if it is answered.
    pub(crate) fn found(&mut self, n: usize, tag: u64) -> Option<Vec<u8>> {
        let node = &mut self.nodes[n];
        let answered = node.replies.get(&tag).is_some_and(Result::is_ok);
        let buf = node.reads.remove(&tag).filter(|_| answered)?;
        node.bufs.remove(&buf)
    }

    pub(crate) fn wait_reply(&mut self, n: usize, tag: u64) -> Result<(), ReplyError> {
        for _ in 0..2_000_000 {
            if let Some(result) = self.nodes[n].replies.get(&tag) {
                return result.clone();
            }
            if !self.step() {
                self.pass_time();
            }
        }
        panic!("request {tag} is never answered: {}", self.dump());
    }

    /// Gives an order and waits for its answer.
    pub(crate) fn order(&mut self, n: usize, command: Command) -> CommandResult {
        let id = self.order_async(n, command);
        for _ in 0..200_000 {
            if let Some(answer) = self.nodes[n].answers.remove(&id) {
                return answer;
            }
            if !self.step() {
                self.pass_time();
            }
        }
        panic!("the order is never answered: {}", self.dump());
    }

    pub(crate) fn order_async(&mut self, n: usize, command: Command) -> u64 {
        self.next_command += 1;
        let id = self.next_command;
        self.feed(
            n,
            Input::Command {
                id: CommandId(id),
                command,
            },
        );
        id
    }

    pub(crate) fn status(&self, n: usize) -> Status {
        self.nodes[n]
            .engine
            .as_ref()
            .expect("it runs")
            .status(self.now)
    }

    pub(crate) fn role(&self, n: usize) -> Role {
        self.status(n).role
    }

    pub(crate) fn disk(&self, n: usize) -> DiskState {
        self.status(n).volumes[0].disk
    }

    pub(crate) fn connection(&self, n: usize) -> ConnState {
        self.status(n).peers[0].connection
    }

    pub(crate) fn out_of_sync(&self, n: usize) -> u64 {
        self.status(n).peers[0].volumes[0].out_of_sync
    }

    pub(crate) fn content(&self, n: usize) -> &[u8] {
        &self.nodes[n].disk.now[..usize::try_from(layout().data_size).expect("small")]
    }

    /// Changes a byte of a disk behind the engines' backs.
    pub(crate) fn rot(&mut self, n: usize, offset: u64, by: u8) {
        let at = usize::try_from(offset).expect("small");
        let disk = &mut self.nodes[n].disk;
        disk.now[at] ^= by;
        disk.stable[at] ^= by;
    }

    pub(crate) fn logged(&self, n: usize, text: &str) -> bool {
        self.nodes[n].log.iter().any(|l| l.contains(text))
    }

    /// Connected, both UpToDate, nothing out of sync, byte-identical.
    pub(crate) fn expect_in_sync(&self) {
        for n in 0..2 {
            let s = self.status(n);
            let pv = &s.peers[0].volumes[0];
            let fine = s.peers[0].connection == ConnState::Connected
                && s.volumes[0].disk == DiskState::UpToDate
                && pv.peer_disk == DiskState::UpToDate
                && pv.replication == ReplState::Established
                && pv.out_of_sync == 0;
            assert!(fine, "not in sync: {}", self.dump());
        }
        let size = usize::try_from(self.status(0).volumes[0].size).expect("small");
        assert!(
            self.content(0)[..size] == self.content(1)[..size],
            "the copies differ: {}",
            self.dump()
        );
        let a = self.status(0).volumes[0].current_uuid & !1;
        let b = self.status(1).volumes[0].current_uuid & !1;
        assert_eq!(a, b, "the generations differ: {}", self.dump());
    }

    pub(crate) fn dump(&self) -> String {
        let mut text = String::new();
        for n in 0..2 {
            text.push_str(&format!("\n== node {n} want {}\n", self.nodes[n].want));
            if let Some(engine) = &self.nodes[n].engine {
                text.push_str(&format!("{:#?}\n", engine.status(self.now)));
            }
            let log = &self.nodes[n].log;
            for line in log.iter().skip(log.len().saturating_sub(40)) {
                text.push_str(&format!("  {line}\n"));
            }
        }
        text
    }
}
