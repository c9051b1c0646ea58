//! Reads a file of discarded data from its beginning to its end, and trusts nothing in it.

use super::format::{Damage, HEADER, Header, Kind, MOST, RECORD, Record};
use std::io::Read;

/// See the module.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    from: R,
    header: Header,
    /// Place in the file.
    at: u64,
    /// Where the last range ended on the device.
    end: u64,
    records: u64,
    saved: u64,
    heads: u32,
}

/// What the whole file holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Total {
    /// Bytes saved.
    pub(crate) saved: u64,
    /// Those that the victim had changed.
    pub(crate) own: u64,
    /// Ranges.
    pub(crate) ranges: u64,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    pub(crate) fn new(mut from: R) -> Result<Self, Damage> {
        let mut block = Vec::new();
        from.by_ref().take(HEADER as u64).read_to_end(&mut block)?;
        let header = Header::decode(&block)?;
        Ok(Self {
            from,
            header,
            at: HEADER as u64,
            end: 0,
            records: 0,
            saved: 0,
            heads: 0,
        })
    }

    /// What the file is about.
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// The next range, its data in `data` (nothing for zeroes). `None` behind the last one, when the end
    /// is what it should be.
    pub(crate) fn next(&mut self, data: &mut Vec<u8>) -> Result<Option<Record>, Damage> {
        data.clear();
        let place = self.at;
        let mut head = [0; RECORD];
        self.fill(&mut head)?;
        let record = Record::decode(&head).map_err(|what| Damage::Record(place, what))?;
        if record.kind == Kind::End {
            return self.finish(place, record).map(|()| None);
        }
        self.check(place, &record)?;
        self.heads = crc32c::crc32c_append(self.heads, &head);
        self.records += 1;
        self.end = record.offset + record.len;
        self.saved += record.len;
        if record.kind == Kind::Data {
            // Bounded by the check.
            data.resize(usize::try_from(record.len).unwrap_or(0), 0);
            self.fill(data)?;
            if crc32c::crc32c(data) != record.crc {
                return Err(Damage::Record(place, "the checksum of its data is wrong"));
            }
        }
        Ok(Some(record))
    }

    fn check(&self, place: u64, record: &Record) -> Result<(), Damage> {
        let end = record.offset.checked_add(record.len);
        let wrong = if end.is_none_or(|end| end > self.header.device_size) {
            "a range behind the end of the device"
        } else if record.len == 0 {
            "an empty range"
        } else if record.offset < self.end {
            "ranges that are not in order"
        } else if record.kind == Kind::Data && record.len > u64::from(MOST) {
            "a range that is too long"
        } else {
            return Ok(());
        };
        Err(Damage::Record(place, wrong))
    }

    fn finish(&mut self, place: u64, end: Record) -> Result<(), Damage> {
        let told = (end.offset, end.len, end.crc);
        if told != (self.saved, self.records, self.heads) {
            return Err(Damage::Record(place, "it does not hold what its end says"));
        }
        let mut byte = [0];
        match self.from.read(&mut byte)? {
            0 => Ok(()),
            _ => Err(Damage::Trailing(self.at)),
        }
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<(), Damage> {
        let mut done = 0;
        while done < buf.len() {
            match self.from.read(&mut buf[done..]) {
                Ok(0) => return Err(Damage::Short(self.at)),
                Ok(n) => {
                    done += n;
                    self.at += n as u64;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Reads to the end, and hands over every range.
    pub(crate) fn each(
        &mut self,
        mut seen: impl FnMut(&Record, &[u8]) -> Result<(), Damage>,
    ) -> Result<Total, Damage> {
        let (mut total, mut data) = (Total::default(), Vec::new());
        while let Some(record) = self.next(&mut data)? {
            total.saved += record.len;
            total.own += if record.own { record.len } else { 0 };
            total.ranges += 1;
            seen(&record, &data)?;
        }
        Ok(total)
    }
}
