//! The values of all options of a resource.

use super::options::{Key, OPTIONS};
use super::values::Value;
use std::time::Duration;

/// The values in force: what the file says, else the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings(Vec<Value>);

impl Default for Settings {
    fn default() -> Self {
        Self(OPTIONS.iter().map(|row| row.default).collect())
    }
}

impl Settings {
    /// The value of an option.
    pub(crate) fn get(&self, key: Key) -> Value {
        self.0[key as usize]
    }

    /// Changes a value; the caller has checked it against the row.
    pub(crate) fn set(&mut self, key: Key, value: Value) {
        self.0[key as usize] = value;
    }

    /// The value of a count or a size.
    pub(crate) fn number(&self, key: Key) -> u64 {
        match self.get(key) {
            Value::Number(n) | Value::Bytes(n) => n,
            value => unreachable!("{key:?} is not a number but {value}"),
        }
    }

    /// The value of a duration.
    pub(crate) fn time(&self, key: Key) -> Duration {
        match self.get(key) {
            Value::Time(t) => t,
            value => unreachable!("{key:?} is not a duration but {value}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinblk_engine::config::Options;

    #[test]
    fn defaults_are_the_engines_own() {
        let (s, e) = (Settings::default(), Options::default());
        assert_eq!(s.time(Key::PingInt), e.ping_int);
        assert_eq!(s.time(Key::PingTimeout), e.ping_timeout);
        assert_eq!(s.time(Key::Timeout), e.timeout);
        assert_eq!(s.number(Key::KoCount), u64::from(e.ko_count));
        assert_eq!(s.number(Key::MaxEpochSize), u64::from(e.max_epoch_size));
        assert_eq!(s.number(Key::SndbufSize), e.send_queue);
        assert_eq!(s.number(Key::CMaxRate), e.resync_max_rate);
        assert_eq!(s.number(Key::ResyncWindow), e.resync_window);
        assert_eq!(s.number(Key::AlExtents), u64::from(e.al_extents));
    }
}
