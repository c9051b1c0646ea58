//! The NBD protocol for user-space servers, as a codec without I/O: bytes in, bytes and facts out. A
//! task, a thread or a completion loop can drive it. References are to the sections of the protocol
//! document of the NetworkBlockDevice project.
//!
//! A connection has two phases. *Negotiation* ([`negotiation::Negotiation`]): the client chooses an
//! export and extensions. *Transmission*: the client sends [`request::Request`]s, the server answers
//! with [`reply`] headers and data, in any order.
//!
//! ```
//! use userspace_nbd::export::{BlockSize, Export, TransmissionFlags};
//! use userspace_nbd::negotiation::{Exports, Lookup, Negotiation, Progress};
//!
//! struct One;
//! impl Exports for One {
//!     fn lookup(&self, name: &str) -> Lookup {
//!         if name != "disk" { return Lookup::Unknown; }
//!         Lookup::Found(Export {
//!             name: "disk".into(),
//!             description: String::new(),
//!             size: 1 << 20,
//!             flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH,
//!             block_size: BlockSize { minimum: 512, preferred: 4096, maximum: 1 << 20 },
//!             meta_contexts: vec![],
//!         })
//!     }
//!     fn list(&self) -> Vec<(String, String)> { vec![("disk".into(), String::new())] }
//! }
//!
//! let mut negotiation = Negotiation::new();
//! let mut to_client = negotiation.greeting();
//! // … write `to_client`, read from the client, feed:
//! assert!(matches!(negotiation.feed(&[0, 0], &One, &mut to_client), Progress::NeedMore));
//! ```
#![forbid(unsafe_code)]

pub mod block_status;
pub mod client;
pub mod constants;
pub mod error;
pub mod export;
pub mod kernel;
pub mod negotiation;
mod option;
pub mod reply;
pub mod request;
