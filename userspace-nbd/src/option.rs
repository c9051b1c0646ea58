//! The options of the negotiation, one function each.

use crate::constants::{MAX_STRING, REP_MAGIC, info, opt, rep};
use crate::export::Export;
use crate::negotiation::{
    After, Exports, Lookup, NegotiatedContext, Negotiation, NegotiationError,
};

fn reply(out: &mut Vec<u8>, option: u32, kind: u32, payload: &[u8]) {
    out.extend_from_slice(&REP_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(payload);
}

/// Answers an option with an error and a text for people.
pub(crate) fn refuse(out: &mut Vec<u8>, option: u32, kind: u32, text: &str) {
    let text = &text.as_bytes()[..text.len().min(MAX_STRING)];
    reply(out, option, kind, text);
}

/// A reader over an option's payload.
struct Payload<'a>(&'a [u8]);

impl<'a> Payload<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes(4)
            .map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// A length and a string of at most 4096 bytes.
    fn string(&mut self) -> Option<&'a str> {
        let len = self.u32()? as usize;
        if len > MAX_STRING {
            return None;
        }
        core::str::from_utf8(self.bytes(len)?).ok()
    }
}

pub(crate) fn handle(
    n: &mut Negotiation,
    option: u32,
    payload: &[u8],
    exports: &dyn Exports,
    out: &mut Vec<u8>,
) -> After {
    match option {
        opt::EXPORT_NAME => return export_name(n, payload, exports, out),
        opt::ABORT => {
            reply(out, option, rep::ACK, &[]);
            return After::Abort;
        }
        opt::INFO | opt::GO => return info_or_go(option, payload, exports, out),
        opt::LIST => list(payload, exports, out),
        opt::STRUCTURED_REPLY if payload.is_empty() => {
            n.structured = true;
            reply(out, option, rep::ACK, &[]);
        }
        opt::STRUCTURED_REPLY => {
            refuse(
                out,
                option,
                rep::ERR_INVALID,
                "STRUCTURED_REPLY has no payload",
            );
        }
        opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => {
            meta_context(n, option, payload, exports, out);
        }
        opt::STARTTLS => refuse(out, option, rep::ERR_UNSUP, "TLS is not supported"),
        _ => refuse(out, option, rep::ERR_UNSUP, "unknown option"),
    }
    After::Continue
}

fn export_name(n: &Negotiation, payload: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> After {
    let fail = |text: String| After::Fail(NegotiationError::ExportName(text));
    let Ok(name) = core::str::from_utf8(payload) else {
        return fail("an export name that is not UTF-8".to_string());
    };
    match exports.lookup(name) {
        Lookup::Found(export) => {
            out.extend_from_slice(&export.size.to_be_bytes());
            out.extend_from_slice(&export.flags.0.to_be_bytes());
            if !n.no_zeroes {
                out.extend_from_slice(&[0; 124]);
            }
            After::Done(export, false)
        }
        Lookup::Unknown => fail(format!("no export is called \"{name}\"")),
        Lookup::Refused { policy_text } => fail(policy_text),
    }
}

fn list(payload: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) {
    if !payload.is_empty() {
        return refuse(out, opt::LIST, rep::ERR_INVALID, "LIST has no payload");
    }
    for (name, description) in exports.list() {
        let mut item = u32::try_from(name.len())
            .unwrap_or(0)
            .to_be_bytes()
            .to_vec();
        item.extend_from_slice(name.as_bytes());
        item.extend_from_slice(description.as_bytes());
        reply(out, opt::LIST, rep::SERVER, &item);
    }
    reply(out, opt::LIST, rep::ACK, &[]);
}

fn info_or_go(option: u32, payload: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> After {
    let mut p = Payload(payload);
    let parsed = (|| {
        let name = p.string()?;
        let count = p.u16()?;
        let wanted: Option<Vec<u16>> = (0..count).map(|_| p.u16()).collect();
        p.0.is_empty().then_some((name, wanted?))
    })();
    let Some((name, wanted)) = parsed else {
        refuse(out, option, rep::ERR_INVALID, "malformed INFO or GO");
        return After::Continue;
    };
    let export = match exports.lookup(name) {
        Lookup::Found(export) => export,
        Lookup::Unknown => {
            refuse(
                out,
                option,
                rep::ERR_UNKNOWN,
                &format!("no export is called \"{name}\""),
            );
            return After::Continue;
        }
        Lookup::Refused { policy_text } => {
            refuse(out, option, rep::ERR_POLICY, &policy_text);
            return After::Continue;
        }
    };
    let mut item = |kind: u16, data: &[&[u8]]| {
        let mut bytes = kind.to_be_bytes().to_vec();
        data.iter().for_each(|d| bytes.extend_from_slice(d));
        reply(out, option, rep::INFO, &bytes);
    };
    item(
        info::EXPORT,
        &[&export.size.to_be_bytes(), &export.flags.0.to_be_bytes()],
    );
    if wanted.contains(&info::NAME) {
        item(info::NAME, &[export.name.as_bytes()]);
    }
    if wanted.contains(&info::DESCRIPTION) && !export.description.is_empty() {
        item(info::DESCRIPTION, &[export.description.as_bytes()]);
    }
    let sizes = wanted.contains(&info::BLOCK_SIZE);
    // Allowed unasked as well; a client that does not know it skips it.
    let b = export.block_size;
    item(
        info::BLOCK_SIZE,
        &[
            &b.minimum.to_be_bytes(),
            &b.preferred.to_be_bytes(),
            &b.maximum.to_be_bytes(),
        ],
    );
    reply(out, option, rep::ACK, &[]);
    if option == opt::GO {
        After::Done(export, sizes)
    } else {
        After::Continue
    }
}

fn meta_context(
    n: &mut Negotiation,
    option: u32,
    payload: &[u8],
    exports: &dyn Exports,
    out: &mut Vec<u8>,
) {
    let set = option == opt::SET_META_CONTEXT;
    if set {
        // A new selection, even a failed one, replaces the old.
        n.contexts = None;
    }
    if set && !n.structured {
        let text = "metadata contexts need structured replies first";
        return refuse(out, option, rep::ERR_INVALID, text);
    }
    let mut p = Payload(payload);
    let parsed = (|| {
        let name = p.string()?;
        let count = p.u32()?;
        if count as usize > payload.len() / 4 {
            return None;
        }
        let queries: Option<Vec<&str>> = (0..count).map(|_| p.string()).collect();
        p.0.is_empty().then_some((name, queries?))
    })();
    let Some((name, queries)) = parsed else {
        return refuse(
            out,
            option,
            rep::ERR_INVALID,
            "malformed metadata context option",
        );
    };
    let export = match exports.lookup(name) {
        Lookup::Found(export) => export,
        Lookup::Unknown => return refuse(out, option, rep::ERR_UNKNOWN, "no such export"),
        Lookup::Refused { policy_text } => {
            return refuse(out, option, rep::ERR_POLICY, &policy_text);
        }
    };
    let contexts = matching(&export, &queries, set);
    for context in &contexts {
        let mut item = if set { context.id } else { 0 }.to_be_bytes().to_vec();
        item.extend_from_slice(context.name.as_bytes());
        reply(out, option, rep::META_CONTEXT, &item);
    }
    reply(out, option, rep::ACK, &[]);
    if set {
        n.contexts = Some((name.to_string(), contexts));
    }
}

/// The contexts a list of queries names. For LIST no query means all and `namespace:` means all of
/// the namespace; for SET only whole names count.
fn matching(export: &Export, queries: &[&str], set: bool) -> Vec<NegotiatedContext> {
    let wanted = |name: &str| {
        let listed = |q: &str| !set && q.ends_with(':') && name.starts_with(q);
        queries.iter().any(|&q| q == name || listed(q)) || (!set && queries.is_empty())
    };
    export
        .meta_contexts
        .iter()
        .zip(1u32..)
        .filter(|(name, _)| wanted(name))
        .map(|(name, id)| NegotiatedContext {
            id,
            name: name.clone(),
        })
        .collect()
}
