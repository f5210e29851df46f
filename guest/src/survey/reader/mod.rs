//! What one text spells out, found in its tokens. Pure.
//!
//! Not a parser: it goes through the tokens once, keeps in mind what names were last given to, and knows a few
//! sequences of tokens. It knows no scopes. Where it is not sure what a name means, the name means nothing; so
//! it sees too little rather than too much.
//!
//! | it understands | such as |
//! |---|---|
//! | modules, functions and texts that have a name | `local hyper, base = require("vnd:hyper"), "https://a.example"` |
//! | modules that are narrowed, as the modules that they are | `require("vnd:hyper", { hosts = … }).get(url)` |
//! | a call, and one by way of another function | `hyper.get(url)`, `pcall(hyper.get, url)`, `hyper.get "…"` |
//! | texts put together | `` base .. "/x/" .. id``, `` `{base}/x/{id}` `` |
//! | requests as tables | `hyper.request({ url = base, method = "PUT" })` |
//!
//! | file | holds |
//! |---|---|
//! | `names.rs` | what names come to mean, and when they no longer do |
//! | `values.rs` | what an expression means |
//! | `calls.rs` | what is called and required |

mod calls;
mod names;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use neoc_abi::narrowing::Narrowing;
use neoc_abi::survey::Target;

use super::lexer::{self, Kind, Token};

/// Most texts that are put together, and most names that are declared at once.
const MAX_OPERANDS: usize = 64;

/// Most tokens of a table, a list of parameters or a type that are looked at.
const MAX_AHEAD: usize = 500;

/// Most bytes of texts that names stand for, and of texts that were found.
const MAX_BYTES: usize = 2 * 1024 * 1024;

/// What a thing that was found takes beside its texts, in bytes, with some to spare.
const FOUND_BYTES: usize = 100;

/// What is found, in the order of the text.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// In bytes of the text.
    pub span: Range<usize>,
    /// What.
    pub what: What,
}

/// What is found.
#[derive(Debug, PartialEq, Eq)]
pub enum What {
    /// A module is required, ours or the tenant's own.
    Require {
        /// As written.
        name: String,
        /// What is beside the name, if that is spelled out whole.
        narrowing: Option<Narrowing>,
        /// Whether the script catches it when the module is not there.
        is_caught: bool,
    },
    /// A function of one of our modules is called.
    Call {
        /// The module as it was required.
        module: String,
        /// The function.
        function: String,
        /// The first argument, or the URL in it.
        target: Option<Target>,
        /// Of HTTP, as it is sent.
        method: Option<String>,
    },
    /// A URL in no call that was understood.
    Url(Target),
}

/// What a name means.
#[derive(Debug, Clone)]
enum Meaning {
    /// `require` itself.
    Require,
    /// What it gave.
    Module(String),
    /// A function of a module.
    Function(String, String),
    Text(Text),
    /// One of several things, or something that is computed.
    Unsure,
}

/// A text that is known, and the tokens that it is made of.
#[derive(Debug, Clone, Default)]
struct Text {
    target: Target,
    /// By where they start.
    tokens: Vec<usize>,
}

/// Finds what a text spells out; and whether there is more, which was left out.
pub fn read(source: &[u8]) -> (Vec<Found>, bool) {
    let mut reader = Reader {
        source,
        tokens: lexer::tokens(source),
        meanings: BTreeMap::from([(&b"require"[..], Meaning::Require)]),
        n_known_bytes: 0,
        found: BTreeMap::new(),
        n_found_bytes: 0,
        used: BTreeSet::new(),
    };
    for at in 0..reader.tokens.len() {
        reader.step(at);
    }
    reader.add_urls();
    let found = reader.found.into_iter().map(|((start, _), (end, what))| Found { span: start..end, what });
    (found.collect(), reader.n_found_bytes > MAX_BYTES)
}

/// Which of two things that begin at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    Require,
    Call,
    Url,
}

struct Reader<'s> {
    source: &'s [u8],
    tokens: Vec<Token>,
    meanings: BTreeMap<&'s [u8], Meaning>,
    /// Of all texts that names have stood for.
    n_known_bytes: usize,
    /// By where it starts: to come by a place twice does no harm.
    found: BTreeMap<(usize, Layer), (usize, What)>,
    n_found_bytes: usize,
    /// Texts that are in a call, by where they start.
    used: BTreeSet<usize>,
}

impl<'s> Reader<'s> {
    // === Tokens ===

    fn kind(&self, at: usize) -> Option<Kind> {
        self.tokens.get(at).map(|token| token.kind)
    }

    fn written(&self, at: usize, kind: Kind) -> Option<&'s [u8]> {
        let token = self.tokens.get(at).filter(|token| token.kind == kind)?;
        self.source.get(token.start..token.end)
    }

    fn name(&self, at: usize) -> Option<&'s [u8]> {
        self.written(at, Kind::Name)
    }

    /// The sign there. Empty: it is none.
    fn sign(&self, at: usize) -> &'s [u8] {
        self.written(at, Kind::Sign).unwrap_or_default()
    }

    fn sign_before(&self, at: usize) -> &'s [u8] {
        at.checked_sub(1).map(|before| self.sign(before)).unwrap_or_default()
    }

    /// The places of these tokens that are next to be looked at.
    fn ahead(&self, at: usize) -> Range<usize> {
        at..self.tokens.len().min(at + MAX_AHEAD)
    }

    // === One step ===

    fn step(&mut self, at: usize) {
        let Some(name) = self.name(at) else { return };
        match name {
            b"local" => self.declare(at + 1),
            b"function" => self.forget_parameters(at + 1),
            b"for" => self.forget_until_in(at + 1),
            // Behind a dot or a colon it is a field of something else.
            _ if matches!(self.sign_before(at), b"." | b":") => {}
            // It was declared with this word.
            _ if at.checked_sub(1).and_then(|before| self.name(before)) == Some(b"local") => {}
            _ if self.is_assigned(at) => {
                let meaning = self.value(at + 2).filter(|_| self.sign(at + 1) == b"=").map(|(meaning, _)| meaning);
                self.assign(name, meaning);
            }
            _ => {
                self.forget_assigned(at);
                self.find_call(at);
            }
        }
    }
}
