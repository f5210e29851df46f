//! What a `neoc run` refuses: in the audit file of its policy, or else in its log, which it is asked for.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use neoc::cli::load_policy;
use serde_json::Value;

use super::{machine, pastes, refusals};

/// What makes a run log its refusals, beside what it logs in any case.
pub const WITH_REFUSALS: &str = "warn,neoc::audit=info";

/// How a line of the log begins that is a refusal.
const REFUSAL: &str = " INFO policy=\"";

/// A run that is about to start.
pub struct Run {
    /// Absent: its refusals are in the log.
    audit: Option<PathBuf>,
}

impl Run {
    /// Of a command that is one, and has a policy that can be loaded or none at all.
    pub fn of(command: &mut Command) -> Option<Self> {
        let arguments: Vec<&OsStr> = command.get_args().take_while(|argument| *argument != "--").collect();
        if arguments.first().is_none_or(|verb| *verb != "run") {
            return None;
        }
        let policy = arguments.iter().position(|argument| *argument == "--policy").and_then(|at| arguments.get(at + 1));
        let folder = command.get_current_dir().unwrap_or(Path::new(""));
        let mut audit = None;
        if let Some(policy) = policy.map(|policy| folder.join(policy)) {
            audit = load_policy(&policy).ok()?.host.audit;
            pastes::note(&policy);
        }
        if audit.is_none() && command.get_envs().all(|(name, value)| name != "NEOC_LOG" || value.is_none()) {
            command.env("NEOC_LOG", WITH_REFUSALS);
        }
        Some(Self { audit })
    }

    /// Checks what was refused. Gives what is on standard error without what was asked for here.
    pub fn check(self, stderr: &str) -> String {
        if let Some(audit) = &self.audit {
            refusals::check_file(audit, &machine(None));
            return stderr.to_owned();
        }
        let (records, others) = split(stderr);
        refusals::check(records.into_iter(), &machine(None));
        others
    }
}

/// The refusals in the log of a run, as records, and the rest of what is on standard error.
pub fn split(stderr: &str) -> (Vec<Value>, String) {
    let lines = stderr.split_inclusive('\n');
    let (refused, others): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.starts_with(REFUSAL));
    let records = refused.into_iter().map(|line| fields(line).unwrap_or_else(|| panic!("no record: {line}")));
    (records.map(refusals::of_log).collect(), others.concat())
}

/// The fields of a line such as ` INFO policy="" site="main.luau:1" address=10.0.0.1`. Texts are as in Rust.
fn fields(line: &str) -> Option<Value> {
    let mut fields = serde_json::Map::new();
    let mut rest = line.trim().strip_prefix("INFO ")?;
    while let Some((name, value)) = rest.trim_start().split_once('=') {
        let value = if let Some(text) = value.strip_prefix('"') {
            let (text, after) = unescape(text)?;
            rest = after;
            text
        } else {
            let (text, after) = value.split_once(' ').unwrap_or((value, ""));
            rest = after;
            text.to_owned()
        };
        fields.insert(name.to_owned(), value.into());
    }
    rest.is_empty().then_some(Value::Object(fields))
}

/// A text up to its closing quote, and what follows that.
fn unescape(text: &str) -> Option<(String, &str)> {
    let (mut plain, mut characters) = (String::new(), text.chars());
    loop {
        match characters.next()? {
            '"' => return Some((plain, characters.as_str())),
            '\\' => plain.push(match characters.next()? {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                '0' => '\0',
                'u' => {
                    let (digits, after) = characters.as_str().strip_prefix('{')?.split_once('}')?;
                    characters = after.chars();
                    char::from_u32(u32::from_str_radix(digits, 16).ok()?)?
                }
                character => character,
            }),
            character => plain.push(character),
        }
    }
}
