//! Talks to the daemon: HTTP/1 with JSON over its unix socket, one connection per question.

use super::exit::{CliError, Code};
use crate::api::{Answer, ErrorBody, Order, ResourceStatus, Why};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// An order may have to write metadata and wait for the peer; past this, something hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// The daemon at a control socket.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    control: PathBuf,
}

impl Client {
    /// Nothing is connected yet.
    pub(crate) fn new(control: PathBuf) -> Self {
        Self { control }
    }

    /// State of all resources, by name.
    pub(crate) async fn list(&self) -> Result<Vec<ResourceStatus>, CliError> {
        let mut list: Vec<ResourceStatus> = self.get("/v1/resources").await?;
        list.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    }

    /// State of one resource.
    pub(crate) async fn status(&self, name: &str) -> Result<ResourceStatus, CliError> {
        self.get(&format!("/v1/resources/{}", checked(name)?)).await
    }

    /// State of the resource `name`, or of all of them.
    pub(crate) async fn some(&self, name: &str) -> Result<Vec<ResourceStatus>, CliError> {
        match name {
            "all" => self.list().await,
            name => Ok(vec![self.status(name).await?]),
        }
    }

    /// Why a resource is in the state it is in, or what stands against an order.
    pub(crate) async fn why(&self, name: &str, about: Option<&str>) -> Result<Why, CliError> {
        let question = about.map_or(String::new(), |about| format!("?about={about}"));
        self.get(&format!("/v1/resources/{}/why{question}", checked(name)?))
            .await
    }

    /// Gives an order and returns what the daemon says.
    pub(crate) async fn order(
        &self,
        name: &str,
        verb: &str,
        order: &Order,
    ) -> Result<String, CliError> {
        let path = format!("/v1/resources/{}/{verb}", checked(name)?);
        let body = serde_json::to_vec(order).map_err(|e| self.nonsense(&e.to_string()))?;
        let answer: Answer = self.ask(Method::POST, &path, Bytes::from(body)).await?;
        Ok(answer.text)
    }

    /// The stream of events, as pieces of JSON lines.
    pub(crate) async fn events(&self) -> Result<Incoming, CliError> {
        let response = self.send(Method::GET, "/v1/events", Bytes::new()).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        Err(self.refusal(response).await)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, CliError> {
        let exchange = async {
            let response = self.send(method, path, body).await?;
            if !response.status().is_success() {
                return Err(self.refusal(response).await);
            }
            let bytes = response
                .into_body()
                .collect()
                .await
                .map_err(|e| self.lost(&e))?
                .to_bytes();
            serde_json::from_slice(&bytes).map_err(|e| self.nonsense(&e.to_string()))
        };
        tokio::time::timeout(PATIENCE, exchange)
            .await
            .unwrap_or_else(|_| {
                Err(CliError::new(
                    Code::Timeout,
                    format!(
                        "the daemon gave no answer within {} seconds",
                        PATIENCE.as_secs()
                    ),
                    "the order may still be carried out; see `twinblk status`",
                ))
            })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, CliError> {
        let stream = UnixStream::connect(&self.control)
            .await
            .map_err(|e| unreachable_daemon(&self.control, &e))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.lost(&e))?;
        // Ends with the connection; its error reaches us through the response as well.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "twinblk")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|e| self.nonsense(&e.to_string()))?;
        sender
            .send_request(request)
            .await
            .map_err(|e| self.lost(&e))
    }

    /// What an answer that is no success says.
    async fn refusal(&self, response: Response<Incoming>) -> CliError {
        let status = response.status();
        let body = match response.into_body().collect().await {
            Ok(body) => body.to_bytes(),
            Err(e) => return self.lost(&e),
        };
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => body.into(),
            Err(_) => self.nonsense(&format!(
                "{status} {}",
                String::from_utf8_lossy(&body).trim()
            )),
        }
    }

    /// The daemon went away in the middle.
    fn lost(&self, error: &hyper::Error) -> CliError {
        CliError::new(
            Code::NoDaemon,
            format!(
                "the daemon on {} went away before it answered: {error}",
                self.control.display()
            ),
            "whether the order was carried out is not known; see its log and `twinblk status`",
        )
    }

    /// What came back is not what this version understands.
    fn nonsense(&self, detail: &str) -> CliError {
        CliError::new(
            Code::Other,
            format!(
                "the answer on {} was not understood: {detail}",
                self.control.display()
            ),
            "is it a twinblk daemon, of this version? `twinblk --version`",
        )
    }
}

fn unreachable_daemon(control: &Path, error: &std::io::Error) -> CliError {
    // Somebody listens, and has not looked for so long that there is no room to knock.
    if error.kind() == ErrorKind::WouldBlock {
        return CliError::new(
            Code::Timeout,
            format!(
                "the daemon on {} is there and takes no more questions",
                control.display()
            ),
            "try again; if it stays so, look at its log",
        );
    }
    let reason = match error.kind() {
        ErrorKind::NotFound => "there is no such socket".to_owned(),
        ErrorKind::ConnectionRefused => "nobody listens on it".to_owned(),
        _ => error.to_string(),
    };
    let next = if error.kind() == ErrorKind::PermissionDenied {
        "run it as root or as the user the daemon runs as"
    } else {
        "start it with `twinblk daemon --config DIR --state DIR`, or name its socket with \
         --control PATH or TWINBLK_CONTROL"
    };
    let what = format!("no daemon answers on {} ({reason})", control.display());
    CliError::new(Code::NoDaemon, what, next)
}

/// A name that can be part of an address; anything else cannot be a resource anyway.
fn checked(name: &str) -> Result<&str, CliError> {
    match crate::config::parse::name(name) {
        Ok(_) => Ok(name),
        Err((message, help)) => Err(CliError::new(Code::Other, message, help)),
    }
}

#[cfg(test)]
mod tests {
    use crate::api::{Answer, ErrorBody, EventLine, ResourceStatus, Why};
    use serde_json::Value;

    /// Exit code 20 lets a failover daemon believe that nothing is served.
    #[tokio::test]
    async fn a_daemon_too_busy_to_be_asked_is_not_taken_for_dead() {
        use super::{Client, Code};
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("control");
        let client = Client::new(path.clone());
        let code = |error: super::CliError| error.code;
        let nobody = client.list().await.expect_err("nobody is there");
        assert_eq!(code(nobody), Code::NoDaemon as u8);
        let address = SocketAddrUnix::new(&path).expect("an address");
        let busy = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
        bind(&busy, &address).expect("it is free");
        listen(&busy, 0).expect("it listens");
        // Takes the only place there is.
        let first = std::os::unix::net::UnixStream::connect(&path).expect("the first");
        let second = client.list().await.expect_err("there is no room");
        assert_eq!(code(second), Code::Timeout as u8);
        drop((first, busy));
        let dead = client.list().await.expect_err("nobody listens");
        assert_eq!(code(dead), Code::NoDaemon as u8);
    }

    /// Every example of the page is what the types say, no field more and none less.
    #[test]
    fn the_pages_examples_are_what_the_types_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.md");
        let page = std::fs::read_to_string(path).expect("docs/api.md");
        let examples: Vec<&str> = page
            .split("```json\n")
            .skip(1)
            .filter_map(|rest| rest.split("```").next())
            .collect();
        let [answer, refusal, resource, event, why] = examples.as_slice() else {
            panic!("{} examples", examples.len())
        };
        fn same<T: serde::Serialize + serde::de::DeserializeOwned>(text: &str) {
            let written: Value = serde_json::from_str(text).expect("JSON");
            let typed: T = serde_json::from_str(text).expect("the type");
            assert_eq!(serde_json::to_value(typed).expect("JSON"), written);
        }
        same::<Answer>(answer);
        same::<ErrorBody>(refusal);
        same::<ResourceStatus>(resource);
        same::<EventLine>(event);
        same::<Why>(why);
    }
}
