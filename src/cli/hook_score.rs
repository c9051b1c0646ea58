//! `hook RES score`: how good a Primary this node would make, as a number for a cluster manager. The
//! steps are those of DRBD's resource agent.

use crate::api::{ResourceStatus, VolumeStatus};

/// The four scores, from bad to good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scores(pub(crate) [i64; 4]);

impl std::str::FromStr for Scores {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<i64>, _> = text.split_whitespace().map(str::parse).collect();
        let four: [i64; 4] = numbers
            .map_err(|e| format!("not a number: {e}"))?
            .try_into()
            .map_err(|_| "it takes four numbers, as in \"0 10 1000 10000\"".to_owned())?;
        if !four.is_sorted() {
            return Err("they must not get smaller".to_owned());
        }
        Ok(Self(four))
    }
}

/// The score; "none" when this node must not be promoted, "keep" while that is being found out.
pub(super) fn score(status: &ResourceStatus, scores: &Scores) -> String {
    let [consistent, remote, alone, full] = scores.0;
    if !status.up {
        return "none".to_owned();
    }
    let passing = |s: &str| matches!(s, "Attaching" | "Detaching" | "Negotiating");
    if status.volumes.is_empty() || status.volumes.iter().any(|v| passing(&v.disk)) {
        return "keep".to_owned();
    }
    let all = |wanted: &str| status.volumes.iter().all(|v| v.disk == wanted);
    let reaches_current = status.volumes.iter().all(|v| reaches_current(status, v));
    let known = status
        .peers
        .iter()
        .flat_map(|p| &p.volumes)
        .all(|v| v.peer_disk != "DUnknown");
    let value = if all("UpToDate") {
        if status.role == "Primary" || known {
            full
        } else {
            alone
        }
    } else if reaches_current {
        remote
    } else if all("Consistent") {
        consistent
    } else {
        return "none".to_owned();
    };
    // As in DRBD's agent: what is not above zero is no candidate.
    if value > 0 {
        value.to_string()
    } else {
        "none".to_owned()
    }
}

/// The volume's data are current here or on a peer.
pub(super) fn reaches_current(status: &ResourceStatus, volume: &VolumeStatus) -> bool {
    let mut theirs = status.peers.iter().flat_map(|p| &p.volumes);
    volume.disk == "UpToDate"
        || theirs.any(|t| t.volume == volume.volume && t.peer_disk == "UpToDate")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake_daemon::{down, resource};

    fn of(change: impl FnOnce(&mut ResourceStatus)) -> String {
        let mut r = resource("r0");
        r.role = "Secondary".into();
        change(&mut r);
        score(&r, &Scores([0, 10, 1000, 10000]))
    }

    #[test]
    fn the_score_follows_the_data() {
        assert_eq!(of(|_| {}), "10000", "both copies are there");
        let lost = |r: &mut ResourceStatus| {
            r.peers[0].connection = "Connecting".into();
            r.peers[0].volumes[0].peer_disk = "DUnknown".into();
        };
        assert_eq!(of(lost), "1000", "the peer may be newer");
        assert_eq!(
            of(|r| {
                lost(r);
                r.role = "Primary".into();
            }),
            "10000",
            "a Primary is current by itself"
        );
        let disk =
            |state: &'static str| move |r: &mut ResourceStatus| r.volumes[0].disk = state.into();
        for state in ["Inconsistent", "Diskless", "Failed", "Outdated"] {
            assert_eq!(of(disk(state)), "10", "{state}: the peer has the data");
            assert_eq!(
                of(|r| {
                    lost(r);
                    disk(state)(r);
                }),
                "none",
                "{state}: no data"
            );
        }
        let consistent = of(|r| {
            lost(r);
            disk("Consistent")(r);
        });
        assert_eq!(consistent, "none", "its score is 0 by default");
        assert_eq!(of(disk("Attaching")), "keep");
        assert_eq!(score(&down("r0"), &Scores([1, 2, 3, 4])), "none");
        let mut r = resource("r0");
        r.role = "Secondary".into();
        lost(&mut r);
        r.volumes[0].disk = "Consistent".into();
        assert_eq!(score(&r, &Scores([5, 10, 1000, 10000])), "5", "as ordered");
    }

    #[test]
    fn four_numbers_in_order() {
        assert_eq!("0 10 1000 10000".parse(), Ok(Scores([0, 10, 1000, 10000])));
        for wrong in ["", "1 2 3", "1 2 3 4 5", "a b c d", "4 3 2 1"] {
            assert!(wrong.parse::<Scores>().is_err(), "{wrong}");
        }
    }
}
