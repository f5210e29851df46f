//! What a script and its modules spell out, for a check that runs nothing.
//!
//! | file | holds |
//! |---|---|
//! | `lexer.rs` | a text's tokens. Pure |
//! | `reader.rs` | what they spell out. Pure |

mod lexer;
mod reader;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;

use futures::FutureExt;
use mlua::Lua;
use neoc_abi::OperationError;
use neoc_abi::event::Module;
use neoc_abi::narrowing::Narrowing;
use neoc_abi::survey::{MAX_LINE_BYTES, Mention, Spot, Survey, What};

use crate::{module, stdlib};

/// Most bytes of lines and literals that are repeated in one survey.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// What a mention takes beside its texts, in bytes, with some to spare.
const MENTION_BYTES: usize = 100;

/// Looks at a script, and at all modules of its own that it requires by literal names; these are compiled.
pub fn survey(lua: &Lua, entry: Module) -> Survey {
    let module = module::path::module_of(&entry.name).to_owned();
    let mut surveyor = Surveyor {
        lua,
        known: BTreeMap::from([(module, Ok(()))]),
        ahead: vec![(entry.name, entry.source)],
        survey: Survey { n_files: 0, mentions: Vec::new(), is_cut: false },
        n_bytes: 0,
    };
    while let Some((file, source)) = surveyor.ahead.pop() {
        surveyor.look_at(&file, &source);
    }
    surveyor.survey
}

struct Surveyor<'l> {
    lua: &'l Lua,
    /// Modules that were read, or why they cannot be.
    known: BTreeMap<String, Result<(), String>>,
    /// Files that are still to be looked at, and their texts.
    ahead: Vec<(String, Vec<u8>)>,
    survey: Survey,
    n_bytes: usize,
}

impl Surveyor<'_> {
    fn look_at(&mut self, file: &str, source: &[u8]) {
        self.survey.n_files = self.survey.n_files.saturating_add(1);
        let lines = Lines::new(source);
        let (found, is_cut) = reader::read(source);
        self.survey.is_cut |= is_cut;
        for reader::Found { span, what } in found {
            let what = match what {
                reader::What::Require { name, narrowing, is_caught } => match self.require(file, &name) {
                    Ok(true) => What::Module { name, narrowing: narrowing.filter(|_| !is_caught) },
                    Ok(false) => continue,
                    Err(_) if is_caught => continue,
                    Err(message) => What::Broken { message },
                },
                reader::What::Call { module, function, target, method } if is_ours(&module) => {
                    What::Call { module, function, target, method }
                }
                reader::What::Call { .. } => continue,
                reader::What::Url(target) => What::Url(target),
            };
            self.add(Mention { spot: lines.spot(file, span), what });
        }
    }

    /// Whether it is one of our modules. One of the tenant's own is looked at in its turn.
    fn require(&mut self, file: &str, name: &str) -> Result<bool, String> {
        if is_ours(name) {
            return Ok(true);
        }
        if !module::is_own(name) {
            return Err(module::no_such_module(name));
        }
        let module = at_once(module::resolve_name(self.lua, file, name))?;
        if let Some(known) = self.known.get(&module) {
            return known.clone().map(|()| false);
        }
        let read = self.read(&module);
        self.known.insert(module, read.clone());
        read.map(|()| false)
    }

    fn read(&mut self, module: &str) -> Result<(), String> {
        let (file, source) = at_once(module::read(self.lua, module))?;
        module::compile(self.lua, &file, &source, None).map_err(|error| format!("require: {}", error.message))?;
        self.ahead.push((file, source));
        Ok(())
    }

    fn add(&mut self, mention: Mention) {
        let literal = match &mention.what {
            What::Broken { message } => message.len(),
            What::Module { name, narrowing } => name.len() + narrowing.as_ref().map_or(0, Narrowing::n_bytes),
            What::Call { target, .. } => target.as_ref().map_or(0, |target| target.text.len()),
            What::Url(target) => target.text.len(),
        };
        self.n_bytes +=
            MENTION_BYTES + literal + mention.spot.text.as_ref().map_or(0, String::len) + mention.spot.file.len();
        if self.n_bytes > MAX_BYTES {
            self.survey.is_cut = true;
        } else {
            self.survey.mentions.push(mention);
        }
    }
}

fn is_ours(name: &str) -> bool {
    stdlib::MODULES.iter().any(|module| module.name == name)
}

/// The outcome of what never waits while a script is loaded.
fn at_once<T>(future: impl Future<Output = Result<T, crate::failure::Failure>>) -> Result<T, String> {
    let outcome =
        future.now_or_never().unwrap_or_else(|| Err(OperationError::io("require: the host let it wait").into()));
    outcome.map_err(|failure| failure.into_operation_error().message)
}

/// Where the lines of a text start.
struct Lines<'s> {
    source: &'s [u8],
    starts: Vec<usize>,
}

impl<'s> Lines<'s> {
    fn new(source: &'s [u8]) -> Self {
        let breaks = source.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        Self { source, starts: std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect() }
    }

    fn spot(&self, file: &str, span: Range<usize>) -> Spot {
        // The first line starts at 0, so there is always one at or before the place.
        let line = self.starts.partition_point(|start| *start <= span.start).max(1);
        let start = self.starts.get(line - 1).copied().unwrap_or_default();
        let end = self.starts.get(line).map_or(self.source.len(), |next| next - 1);
        let bytes = self.source.get(start..end).unwrap_or_default();
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        let within = |offset: usize| (offset - start).min(bytes.len());
        let before = bytes.get(..within(span.start)).unwrap_or_default();
        let text =
            Some(bytes).filter(|bytes| bytes.len() <= MAX_LINE_BYTES).and_then(|bytes| std::str::from_utf8(bytes).ok());
        Spot {
            file: file.to_owned(),
            line: count(line),
            column: count(String::from_utf8_lossy(before).chars().count() + 1),
            text: text.map(str::to_owned),
            start: count(within(span.start)),
            end: count(within(span.end)),
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
