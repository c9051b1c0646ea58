//! `adjust`: what changed in the file of a resource that runs. The order of things makes a change that
//! could not be carried through a matter of a second `adjust`, never of a lost connection.

use super::convert;
use super::running::{Running, lock};
use super::supervisor::{Supervisor, error};
use crate::api::ErrorBody;
use crate::config::diff::{Change, How, diff};
use std::sync::Arc;
use std::time::Duration;
use twinblk_engine::command::{Command, CommandResult, RefusalKind};

/// Time for each order to the engine.
const ORDER_TIME: Duration = Duration::from_secs(30);

impl Supervisor {
    /// `adjust`: carries out what can be changed in a running resource, and tells all.
    pub(crate) async fn adjust(&self, name: &str, dry_run: bool) -> Result<String, ErrorBody> {
        let _one = self.changing.lock().await;
        self.reload()?;
        let new = self.configured(name)?;
        let running = self.must_run(name)?;
        let old = lock(&running.config).clone();
        let mut changes = lock(&running.owed).clone();
        changes.extend(diff(&old, &new));
        if changes.is_empty() {
            return Ok("nothing to change".to_string());
        }
        let text = changes
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n");
        if changes.iter().any(|c| c.how == How::NeedsDownUp) {
            let reason = format!("not possible while {name} is up:\n{text}");
            let way_out = format!("run `twinblk down {name}` and `twinblk up {name}`");
            return Err(error("state", 11, reason, &way_out));
        }
        if dry_run {
            return Ok(format!("would change:\n{text}"));
        }
        let options = Command::SetOptions(Box::new(new.engine_options()));
        let told = |r| {
            let mut e = convert::error(&new, &r);
            e.way_out = format!("{}; then `twinblk adjust {name}` again", e.way_out);
            e
        };
        running.order(options, ORDER_TIME).await.map_err(told)?;
        // The new connection is made with these. That it is still to be made is remembered apart.
        *lock(&running.config) = new.clone();
        if let Some(device) = &running.device {
            device.wake();
        }
        let owed: Vec<Change> = changes
            .into_iter()
            .filter(|c| c.how == How::NeedsReconnect)
            .collect();
        if !owed.is_empty() {
            *lock(&running.owed) = owed;
            reconnect(&running).await.map_err(told)?;
            lock(&running.owed).clear();
        }
        Ok(format!("changed:\n{text}"))
    }
}

/// Leaves the peers and joins them again. Whatever comes of the first, the second is ordered: nobody
/// asked for being left alone.
async fn reconnect(running: &Arc<Running>) -> CommandResult {
    let join = || Command::Connect {
        peer: None,
        discard_my_data: false,
        dry_run: false,
    };
    let mut leave = running.give(Command::Disconnect { peer: None });
    let left = running.answer_within(&mut leave, ORDER_TIME).await;
    let joined = running.order(join(), ORDER_TIME).await;
    if left.as_ref().is_err_and(|r| r.kind == RefusalKind::Timeout) {
        // The peers will be left all the same, and the order to join them came too early.
        let running = Arc::clone(running);
        tokio::spawn(async move {
            if leave.await.is_ok() {
                let _ = running.order(join(), ORDER_TIME).await;
            }
        });
    }
    left.and(joined)
}
