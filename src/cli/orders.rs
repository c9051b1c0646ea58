//! Verbs that are orders: they go to the daemon as they are, and its answer is printed.

use super::args::Verb;
use super::client::Client;
use super::exit::{CliError, Code};
use super::print;
use crate::api::Order;
use crate::config;
use std::path::{Path, PathBuf};

/// An order for one resource or all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ordered {
    verb: &'static str,
    resource: String,
    order: Order,
}

/// What a verb orders; `None` for verbs that are no orders.
pub(super) fn order_of(verb: &Verb) -> Option<Ordered> {
    let none = Order::default;
    let (verb, resource, order) = match verb {
        Verb::Up(resource) => ("up", resource, none()),
        Verb::Down { resource, force } => (
            "down",
            resource,
            Order {
                force: *force,
                ..none()
            },
        ),
        Verb::Connect {
            resource,
            peer,
            discard_my_data,
            save_discarded,
            dry_run,
        } => {
            let (discard_my_data, dry_run) = (*discard_my_data, *dry_run);
            // The daemon has another directory; what cannot be made absolute it refuses.
            let absolute = |file: &PathBuf| std::path::absolute(file).unwrap_or(file.clone());
            let save_discarded = save_discarded.as_ref().map(absolute);
            let order = Order {
                peer: peer.name.clone(),
                save_discarded: save_discarded.map(|f| f.to_string_lossy().into_owned()),
                discard_my_data,
                dry_run,
                ..none()
            };
            ("connect", resource, order)
        }
        Verb::Disconnect { resource, peer } => (
            "disconnect",
            resource,
            Order {
                peer: peer.name.clone(),
                ..none()
            },
        ),
        Verb::Primary { resource, force } => (
            "primary",
            resource,
            Order {
                force: *force,
                ..none()
            },
        ),
        Verb::Secondary { resource, force } => (
            "secondary",
            resource,
            Order {
                force: *force,
                ..none()
            },
        ),
        Verb::Outdate(resource) => ("outdate", resource, none()),
        Verb::Adjust { resource, dry_run } => (
            "adjust",
            resource,
            Order {
                dry_run: *dry_run,
                ..none()
            },
        ),
        Verb::Dump { resource, .. } => {
            return Some(Ordered {
                verb: "dump",
                resource: resource.name.clone(),
                order: none(),
            });
        }
        Verb::Attach(resource) => ("attach", resource, none()),
        Verb::Detach { resource, force } => (
            "detach",
            resource,
            Order {
                force: *force,
                ..none()
            },
        ),
        Verb::SuspendIo(resource) => ("suspend-io", resource, none()),
        Verb::ResumeIo(resource) => ("resume-io", resource, none()),
        Verb::Invalidate(resource) => ("invalidate", resource, none()),
        Verb::InvalidateRemote { resource, peer } => (
            "invalidate-remote",
            resource,
            Order {
                peer: peer.name.clone(),
                ..none()
            },
        ),
        Verb::Verify {
            resource,
            peer,
            repair,
            stop,
        } => (
            "verify",
            resource,
            Order {
                peer: peer.name.clone(),
                repair: *repair,
                stop: *stop,
                ..none()
            },
        ),
        Verb::Resize {
            resource,
            size,
            force,
        } => (
            "resize",
            resource,
            Order {
                size: *size,
                force: *force,
                ..none()
            },
        ),
        Verb::NewCurrentUuid {
            resource,
            clear_bitmap,
        } => (
            "new-current-uuid",
            resource,
            Order {
                clear_bitmap: *clear_bitmap,
                ..none()
            },
        ),
        _ => return None,
    };
    Some(Ordered {
        verb,
        resource: resource.name.clone(),
        order,
    })
}

/// Carries an order out. With `all`, a refusal does not keep the other resources from being
/// served; the first one decides the exit code.
pub(super) async fn run(client: &Client, ordered: &Ordered) -> Result<(), CliError> {
    if ordered.resource != "all" {
        let text = client
            .order(&ordered.resource, ordered.verb, &ordered.order)
            .await;
        return print(&lines("", &text.map_err(|e| e.about(&ordered.resource))?));
    }
    let mut first = None;
    for resource in client.list().await? {
        match client
            .order(&resource.name, ordered.verb, &ordered.order)
            .await
        {
            // A dump tells by itself what it is about.
            Ok(text) if ordered.verb == "dump" => print(&lines("", &text))?,
            Ok(text) => print(&lines(&format!("{}: ", resource.name), &text))?,
            Err(error) => {
                let error = error.about(&resource.name);
                match &first {
                    None => first = Some(error),
                    Some(_) => eprintln!("{error}"),
                }
            }
        }
    }
    first.map_or(Ok(()), Err)
}

/// `dump` without a daemon.
pub(super) fn dump_files(directory: &Path, node: Option<&str>, name: &str) -> Result<(), CliError> {
    let config = config::load(directory, node)?;
    for warning in &config.warnings {
        eprintln!("twinblk: warning: {warning}");
    }
    let mut out = String::new();
    for resource in config
        .resources
        .iter()
        .filter(|r| name == "all" || r.name == name)
    {
        if !out.is_empty() {
            out.push('\n');
        }
        out += &config::dump::dump(resource);
    }
    if out.is_empty() {
        return Err(unknown_resource(name, &config));
    }
    print(&out)
}

/// The configuration has no resource of this name.
pub(super) fn unknown_resource(name: &str, config: &config::Config) -> CliError {
    let names: Vec<&str> = config.resources.iter().map(|r| r.name.as_str()).collect();
    let near = config::error::nearest(name, names.iter().copied());
    let near = near
        .map(|n| format!("did you mean `{n}`? "))
        .unwrap_or_default();
    CliError::new(
        Code::Other,
        format!("node `{}` has no resource named `{name}`", config.node_name),
        format!("{near}resources: {}", names.join(", ")),
    )
}

/// Every line with `prefix` in front; nothing for an empty text.
fn lines(prefix: &str, text: &str) -> String {
    text.lines()
        .map(|line| format!("{prefix}{line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Cli;
    use crate::cli::fake_daemon::{FakeDaemon, resource};
    use clap::Parser;

    fn parsed(words: &str) -> Ordered {
        let cli = Cli::parse_from(words.split(' '));
        order_of(&cli.verb).expect("an order")
    }

    #[test]
    fn options_reach_the_order() {
        let connect = parsed("twinblk connect r0 --discard-my-data --dry-run --peer bravo");
        assert_eq!((connect.verb, connect.resource.as_str()), ("connect", "r0"));
        let expected = Order {
            peer: Some("bravo".into()),
            discard_my_data: true,
            dry_run: true,
            ..Order::default()
        };
        assert_eq!(connect.order, expected);
        assert!(parsed("twinblk primary r0 --force").order.force);
        assert!(parsed("twinblk down r0 --force").order.force);
        assert!(parsed("twinblk adjust all --dry-run").order.dry_run);
        assert!(
            parsed("twinblk new-current-uuid r0 --clear-bitmap")
                .order
                .clear_bitmap
        );
        assert_eq!(parsed("twinblk secondary r0").order, Order::default());
        let peer = parsed("twinblk invalidate-remote r0 --peer b").order.peer;
        assert_eq!(peer.as_deref(), Some("b"));
        let verify = parsed("twinblk verify r0 --repair --peer b").order;
        assert!(verify.repair && !verify.stop && verify.peer.is_some());
        assert!(parsed("twinblk verify r0 --stop").order.stop);
        let resize = parsed("twinblk resize r0 --size 8192 --force").order;
        assert!(resize.force && resize.size == Some(8192));
    }

    #[tokio::test]
    async fn a_refusal_keeps_its_code_reason_and_way_out() {
        let daemon = FakeDaemon::start(vec![resource("r0")]).await;
        let error = run(&daemon.client(), &parsed("twinblk secondary r0"))
            .await
            .unwrap_err();
        assert_eq!(error.code, 12);
        assert_eq!(
            error.to_string(),
            "twinblk: r0: fio holds the export\n  end it first"
        );
        assert!(
            run(&daemon.client(), &parsed("twinblk up r0"))
                .await
                .is_ok()
        );
        assert_eq!(daemon.orders(), ["r0 secondary", "r0 up"]);
    }

    #[tokio::test]
    async fn all_goes_on_after_a_refusal() {
        let daemon = FakeDaemon::start(vec![resource("r1"), resource("r0")]).await;
        let error = run(&daemon.client(), &parsed("twinblk secondary all"))
            .await
            .unwrap_err();
        assert_eq!(error.code, 12);
        assert!(error.what.starts_with("r0: "), "{error}");
        assert_eq!(daemon.orders(), ["r0 secondary", "r1 secondary"]);
    }

    #[tokio::test]
    async fn unknown_and_impossible_names() {
        let daemon = FakeDaemon::start(vec![resource("r0")]).await;
        let error = run(&daemon.client(), &parsed("twinblk up r9"))
            .await
            .unwrap_err();
        assert_eq!(
            (error.code, error.what.as_str()),
            (10, "r9: no resource named r9")
        );
        let error = run(&daemon.client(), &parsed("twinblk up ../r9"))
            .await
            .unwrap_err();
        assert!(error.what.contains("cannot be a name"), "{error}");
    }

    #[tokio::test]
    async fn without_a_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let client = Client::new(path.clone());
        let error = run(&client, &parsed("twinblk up r0")).await.unwrap_err();
        assert_eq!(error.code, 20);
        assert!(error.what.contains("(there is no such socket)"), "{error}");
        assert!(error.next.contains("twinblk daemon"), "{error}");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let error = run(&client, &parsed("twinblk up r0")).await.unwrap_err();
        assert!(error.what.contains("(nobody listens on it)"), "{error}");
    }

    #[tokio::test]
    async fn something_else_on_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            use std::io::Write;
            for stream in listener.incoming().take(2) {
                stream
                    .unwrap()
                    .write_all(b"220 mail.example ESMTP\r\n")
                    .unwrap();
            }
        });
        let error = run(&Client::new(path), &parsed("twinblk up r0"))
            .await
            .unwrap_err();
        assert_eq!(error.code, 20, "{error}");
    }

    #[test]
    fn lines_are_set_after_the_name() {
        assert_eq!(lines("r0: ", "a\nb"), "r0: a\nr0: b\n");
        assert_eq!(lines("r0: ", ""), "");
    }
}
