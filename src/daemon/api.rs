//! The control socket: HTTP and JSON, see [`crate::api`]. Access is by the permissions of the socket
//! file: its owner and root.

use super::kernel_device::KernelDevice;
use super::running::{Running, lock};
use super::socket_file::{SocketFile, remove_stale};
use super::supervisor::{Supervisor, error};
use super::why::About;
use super::{DaemonError, convert};
use crate::api::{Answer, ErrorBody, EventLine, Order, ResourceStatus, Version, Why};
use crate::config;
use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{broadcast, mpsc};
use twinblk_engine::command::{Command, CommandResult};
use twinblk_engine::ids::NodeId;

/// Time an order may take before the caller is told what it waits for.
pub(super) const ORDER_TIME: Duration = Duration::from_secs(30);

type Shared = State<Arc<Supervisor>>;

/// Binds the control socket.
pub(crate) async fn listen(
    path: &std::path::Path,
) -> Result<(UnixListener, SocketFile), DaemonError> {
    let shown = path.display();
    remove_stale(path).await.map_err(|why| {
        DaemonError::InUse(format!(
            "the control socket cannot be made: {why}; another daemon needs its own --control"
        ))
    })?;
    if let Some(parent) = path.parent() {
        let _ = std::fs::create_dir_all(parent);
    }
    let listener = UnixListener::bind(path).map_err(|e| {
        DaemonError::System(format!("the control socket {shown} cannot be made: {e}"))
    })?;
    let file = SocketFile(path.to_path_buf());
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))
        .map_err(|e| DaemonError::System(format!("{shown}: {e}")))?;
    Ok((listener, file))
}

/// Serves it.
pub(crate) async fn serve(listener: UnixListener, supervisor: Arc<Supervisor>) {
    let router = Router::new()
        .route("/v1/version", get(version))
        .route("/v1/events", get(events))
        .route("/v1/resources", get(resources))
        .route("/v1/resources/{name}", get(resource))
        .route("/v1/resources/{name}/why", get(why))
        .route("/v1/resources/{name}/{verb}", post(verb))
        .with_state(supervisor);
    if let Err(e) = axum::serve(listener, router).await {
        tracing::error!("the control socket failed: {e}");
    }
}

impl IntoResponse for ErrorBody {
    fn into_response(self) -> Response {
        let status = match self.kind.as_str() {
            "unknown" => StatusCode::NOT_FOUND,
            "usage" => StatusCode::BAD_REQUEST,
            "timeout" => StatusCode::GATEWAY_TIMEOUT,
            "other" => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::CONFLICT,
        };
        (status, Json(self)).into_response()
    }
}

async fn version() -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION").to_string(),
        api: 1,
    })
}

async fn resources(State(supervisor): Shared) -> Json<Vec<ResourceStatus>> {
    // A file added since is seen; a broken one is told by the orders that need it.
    let _ = supervisor.reload();
    let mut all = Vec::new();
    for name in supervisor.names() {
        if let Ok(status) = supervisor.status(&name).await {
            all.push(status);
        }
    }
    Json(all)
}

async fn resource(
    State(supervisor): Shared,
    Path(name): Path<String>,
) -> Result<Json<ResourceStatus>, ErrorBody> {
    supervisor.status(&name).await.map(Json)
}

async fn why(
    State(supervisor): Shared,
    Path(name): Path<String>,
    RawQuery(question): RawQuery,
) -> Result<Json<Why>, ErrorBody> {
    let about = match question.as_deref() {
        None | Some("") => None,
        Some("about=promote") => Some(About::Promote),
        Some("about=demote") => Some(About::Demote),
        Some(other) => {
            let reason = format!("`why` cannot be asked \"{other}\"");
            let way_out = "ask ?about=promote, ?about=demote, or nothing";
            return Err(error("usage", 1, reason, way_out));
        }
    };
    supervisor.why(&name, about).await.map(Json)
}

async fn verb(
    State(supervisor): Shared,
    Path((name, verb)): Path<(String, String)>,
    body: Bytes,
) -> Result<Json<Answer>, ErrorBody> {
    let order: Order = if body.is_empty() {
        Order::default()
    } else {
        serde_json::from_slice(&body)
            .map_err(|e| error("usage", 1, format!("the order cannot be read: {e}"), ""))?
    };
    // In a task of its own: an order that has begun is carried out to its end, whether or not the
    // one who gave it stays to hear the answer.
    let work = tokio::spawn(async move { carry_out(&supervisor, &name, &verb, &order).await });
    match work.await {
        Ok(result) => result.map(|text| Json(Answer { text })),
        Err(e) => {
            let reason = format!("the order was not finished: {e}");
            Err(error("other", 10, reason, "look at the daemon's log"))
        }
    }
}

async fn carry_out(
    supervisor: &Arc<Supervisor>,
    name: &str,
    verb: &str,
    order: &Order,
) -> Result<String, ErrorBody> {
    let command = match verb {
        "up" => return supervisor.up(name).await,
        "down" => return supervisor.down(name, order.force).await,
        "attach" => return supervisor.attach(name).await,
        "adjust" => return supervisor.adjust(name, order.dry_run).await,
        "dump" => return Ok(config::dump::dump(&supervisor.configured(name)?)),
        "primary" => Command::Primary { force: order.force },
        "secondary" if order.force => Command::SecondaryByForce,
        "secondary" => Command::Secondary,
        "outdate" => Command::Outdate,
        "connect" if order.save_discarded.is_some() => save_first(supervisor, name, order)?,
        "connect" => Command::Connect {
            peer: peer(supervisor, name, order)?,
            discard_my_data: order.discard_my_data,
            dry_run: order.dry_run,
        },
        "disconnect" => Command::Disconnect {
            peer: peer(supervisor, name, order)?,
        },
        "detach" => Command::Detach { force: order.force },
        "suspend-io" => Command::SuspendIo,
        "resume-io" => Command::ResumeIo,
        "invalidate" => Command::Invalidate,
        "invalidate-remote" => Command::InvalidateRemote {
            peer: peer(supervisor, name, order)?,
        },
        "verify" if order.stop => Command::VerifyStop {
            peer: peer(supervisor, name, order)?,
        },
        "verify" => Command::Verify {
            peer: peer(supervisor, name, order)?,
            repair: order.repair,
        },
        "resize" => Command::Resize {
            size: order.size,
            force: order.force,
        },
        "new-current-uuid" => Command::NewCurrentUuid {
            clear_bitmap: order.clear_bitmap,
        },
        _ => {
            let reason = format!("there is no order \"{verb}\"");
            return Err(error("usage", 1, reason, "see docs/api.md for the orders"));
        }
    };
    let running = supervisor.must_run(name)?;
    let text = match &running.device {
        Some(device) => order_with_device(device, &running, command).await?,
        None => order_engine(&running, command).await?,
    };
    Ok(convert::names(&lock(&running.config), &text))
}

/// `connect --discard-my-data --save-discarded`.
fn save_first(supervisor: &Supervisor, name: &str, order: &Order) -> Result<Command, ErrorBody> {
    let file = order.save_discarded.clone().unwrap_or_default();
    let path = std::path::Path::new(&file);
    let usage = |reason: &str, way_out| Err(error("usage", 1, reason.to_string(), way_out));
    if !order.discard_my_data || order.dry_run {
        let way_out = "add `discard_my_data`, and leave `dry_run` out";
        return usage("`save_discarded` saves only what is given up", way_out);
    }
    if !path.is_absolute() {
        let way_out = "begin it with `/`: it is written on the daemon's machine";
        return usage("`save_discarded` must be an absolute path", way_out);
    }
    if path.symlink_metadata().is_ok() {
        let reason = format!("{file} exists already");
        return Err(error("state", 11, reason, "name a file that does not"));
    }
    let peer = peer(supervisor, name, order)?;
    Ok(Command::DiscardSaving { peer, file })
}

async fn order_engine(running: &Running, command: Command) -> Result<String, ErrorBody> {
    let limit = match command {
        // It may have to wait for `fence-peer`.
        Command::Primary { .. } => ORDER_TIME + lock(&running.config).handler_timeout(),
        _ => ORDER_TIME,
    };
    let result = running.order(command, limit).await;
    told(running, result)
}

fn told(running: &Running, result: CommandResult) -> Result<String, ErrorBody> {
    let config = lock(&running.config).clone();
    result.map_err(|refusal| convert::error(&config, &refusal))
}

/// Some orders concern the kernel device as well.
async fn order_with_device(
    device: &KernelDevice,
    running: &Arc<Running>,
    command: Command,
) -> Result<String, ErrorBody> {
    match command {
        Command::Primary { .. } => {
            device.before_promotion(running).await;
            let text = order_engine(running, command).await?;
            device.after_promotion(running).await?;
            Ok(text)
        }
        Command::Secondary => {
            let released = device.release(running).await?;
            let mut answer = released.until_answered(running.give(command));
            let result = running.answer_within(&mut answer, ORDER_TIME).await;
            told(running, result)
        }
        Command::SecondaryByForce => {
            let released = device.release_for_down(running, true).await?;
            let mut answer = released.until_answered(running.give(command));
            let result = running.answer_within(&mut answer, ORDER_TIME).await;
            told(running, result)
        }
        Command::Resize { .. } => {
            let text = order_engine(running, command).await?;
            // The kernel knows it when the order is answered; what stands in the way is in `status`.
            device.after_resize(running).await;
            Ok(text)
        }
        _ => order_engine(running, command).await,
    }
}

fn peer(supervisor: &Supervisor, name: &str, order: &Order) -> Result<Option<NodeId>, ErrorBody> {
    let Some(wanted) = &order.peer else {
        return Ok(None);
    };
    let config = supervisor.configured(name)?;
    match config.peers.iter().find(|p| p.name == *wanted) {
        Some(peer) => Ok(Some(NodeId(peer.id))),
        None => {
            let known: Vec<&str> = config.peers.iter().map(|p| p.name.as_str()).collect();
            let reason = format!("{name} has no peer {wanted}; it has: {}", known.join(", "));
            Err(error("unknown", 10, reason, ""))
        }
    }
}

/// The present state, then every change, one JSON object per line. A listener that does not keep up
/// is told so and dropped.
async fn events(State(supervisor): Shared) -> Response {
    let mut changes = supervisor.events.subscribe();
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(64);
    tokio::spawn(async move {
        for name in supervisor.names() {
            if let Ok(status) = supervisor.status(&name).await {
                for line in convert::state_lines(&status) {
                    if sender.send(Ok(json_line(&line))).await.is_err() {
                        return;
                    }
                }
            }
        }
        let end = EventLine {
            time_ms: convert::now_ms(),
            kind: "exists".to_string(),
            severity: "info".to_string(),
            cause: "the present state is told; changes follow".to_string(),
            ..EventLine::default()
        };
        if sender.send(Ok(json_line(&end))).await.is_err() {
            return;
        }
        loop {
            let bytes = match changes.recv().await {
                Ok(line) => json_line(&line),
                Err(broadcast::error::RecvError::Closed) => return,
                Err(broadcast::error::RecvError::Lagged(n)) => {
                    let line = EventLine {
                        time_ms: convert::now_ms(),
                        resource: String::new(),
                        kind: "incident".to_string(),
                        peer: None,
                        volume: None,
                        from: None,
                        to: None,
                        severity: "error".to_string(),
                        cause: format!("{n} events were missed: this listener is too slow"),
                    };
                    let _ = sender.send(Ok(json_line(&line))).await;
                    return;
                }
            };
            if sender.send(Ok(bytes)).await.is_err() {
                return;
            }
        }
    });
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    (
        [(header::CONTENT_TYPE, "application/jsonl")],
        Body::from_stream(stream),
    )
        .into_response()
}

fn json_line(line: &EventLine) -> Bytes {
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_goes_with_the_daemon() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("control");
        let (listener, file) = listen(&path).await.expect("it is free");
        let error = listen(&path).await.expect_err("it is taken");
        assert!(error.to_string().contains("--control"), "{error}");
        assert!(path.exists(), "the other's socket stays");
        drop((listener, file));
        assert!(!path.exists());
    }
}
