//! For tests of the command line: something that answers like a daemon.

use super::client::Client;
use crate::api::{
    Answer, ErrorBody, Order, PeerStatus, PeerVolumeStatus, ResourceStatus, VolumeStatus,
};
use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use std::sync::{Arc, Mutex};

/// A healthy pair: this node Primary, connected to bravo, 1 GiB.
pub(super) fn resource(name: &str) -> ResourceStatus {
    ResourceStatus {
        name: name.to_owned(),
        node: "alpha".into(),
        up: true,
        role: "Primary".into(),
        role_since_seconds: None,
        promotion_refused: None,
        promotion_fences: Vec::new(),
        demotion_refused: None,
        suspended_for: Vec::new(),
        suspended: None,
        open_clients: Vec::new(),
        exports: vec![format!("unix:/run/twinblk/{name}.sock")],
        volumes: vec![VolumeStatus {
            volume: 0,
            disk: "UpToDate".into(),
            reason: String::new(),
            since_seconds: None,
            size: 1 << 30,
            block_size: 512,
            current_uuid: "0123456789abcdef".into(),
            disk_engine: "io_uring, O_DIRECT".into(),
            activity_log: None,
            marked_after_crash: 0,
            errors_passed_on: 0,
            served_by: None,
            attach_in_seconds: None,
            device: None,
        }],
        peers: vec![PeerStatus {
            name: "bravo".into(),
            node_id: 1,
            connection: "Connected".into(),
            role: "Secondary".into(),
            reason: String::new(),
            since_seconds: 5,
            unsent: 0,
            transfer_log: 0,
            disagreement: None,
            split_brain: None,
            not_fenced: None,
            volumes: vec![PeerVolumeStatus {
                volume: 0,
                replication: "Established".into(),
                peer_disk: "UpToDate".into(),
                out_of_sync: 0,
                ..PeerVolumeStatus::default()
            }],
        }],
        driver: None,
    }
}

/// A resource that is configured and not started.
pub(super) fn down(name: &str) -> ResourceStatus {
    ResourceStatus {
        up: false,
        role: String::new(),
        exports: Vec::new(),
        volumes: Vec::new(),
        peers: Vec::new(),
        ..resource(name)
    }
}

/// What it answers next: one picture after the other, the last one for ever.
type Pictures = Arc<Mutex<Vec<Vec<ResourceStatus>>>>;

#[derive(Clone)]
struct Shared {
    pictures: Pictures,
    orders: Arc<Mutex<Vec<String>>>,
}

/// Stops when dropped.
pub(super) struct FakeDaemon {
    dir: tempfile::TempDir,
    shared: Shared,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeDaemon {
    /// Always the same picture. `secondary` is refused, everything else succeeds.
    pub(super) async fn start(resources: Vec<ResourceStatus>) -> Self {
        Self::start_film(vec![resources]).await
    }

    /// One picture per question.
    pub(super) async fn start_film(pictures: Vec<Vec<ResourceStatus>>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let listener = tokio::net::UnixListener::bind(dir.path().join("c")).expect("bind");
        let shared = Shared {
            pictures: Arc::new(Mutex::new(pictures)),
            orders: Arc::default(),
        };
        let router = Router::new()
            .route("/v1/resources", get(list))
            .route("/v1/resources/{name}", get(one))
            .route("/v1/resources/{name}/{verb}", post(order))
            .route("/v1/events", get(events))
            .with_state(shared.clone());
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Self { dir, shared, task }
    }

    /// A client of it.
    pub(super) fn client(&self) -> Client {
        Client::new(self.dir.path().join("c"))
    }

    /// "NAME VERB" of every order so far.
    pub(super) fn orders(&self) -> Vec<String> {
        self.shared.orders.lock().expect("no panic").clone()
    }
}

impl Shared {
    fn picture(&self) -> Vec<ResourceStatus> {
        let mut pictures = self.pictures.lock().expect("no panic");
        if pictures.len() > 1 {
            pictures.remove(0)
        } else {
            pictures[0].clone()
        }
    }
}

async fn list(State(shared): State<Shared>) -> Json<Vec<ResourceStatus>> {
    Json(shared.picture())
}

type Refusal = (StatusCode, Json<ErrorBody>);

fn refusal(kind: &str, reason: &str, way_out: &str, exit_code: u8) -> Refusal {
    let (kind, reason) = (kind.to_owned(), reason.to_owned());
    (
        StatusCode::CONFLICT,
        Json(ErrorBody {
            kind,
            reason,
            way_out: way_out.to_owned(),
            exit_code,
        }),
    )
}

async fn one(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<ResourceStatus>, Refusal> {
    let found = shared.picture().into_iter().find(|r| r.name == name);
    found
        .map(Json)
        .ok_or_else(|| refusal("unknown", &format!("no resource named {name}"), "", 10))
}

async fn order(
    State(shared): State<Shared>,
    Path((name, verb)): Path<(String, String)>,
    Json(_order): Json<Order>,
) -> Result<Json<Answer>, Refusal> {
    if !shared.picture().iter().any(|r| r.name == name) {
        return Err(refusal(
            "unknown",
            &format!("no resource named {name}"),
            "",
            10,
        ));
    }
    shared
        .orders
        .lock()
        .expect("no panic")
        .push(format!("{name} {verb}"));
    match verb.as_str() {
        "secondary" => Err(refusal(
            "in-use",
            "fio holds the export",
            "end it first",
            12,
        )),
        _ => Ok(Json(Answer {
            text: String::new(),
        })),
    }
}

async fn events() -> &'static str {
    concat!(
        r#"{"time_ms":7,"resource":"r0","kind":"role","peer":null,"volume":null,"#,
        r#""from":"Secondary","to":"Primary","severity":"info","cause":"ordered"}"#,
        "\n"
    )
}
