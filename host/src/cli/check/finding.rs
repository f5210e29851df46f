//! What a policy says of what a tenant's scripts spell out. Each call is judged by the code that judges it in a run.

use std::{collections::BTreeSet, path::Path};

use neoc_abi::{
    narrowing::{Narrowing, Operation as Question},
    survey::{Mention, Spot, Survey, Target, What},
};

use crate::{
    broker,
    policy::{
        Machine, Mode, Module, Reason, Refusal, Snippet, Tenant,
        call::{Call, FileAction, NotAllowed, judge_url},
        detach, fs, http, kv, net, secret, workers,
    },
};

/// Where a call goes that stands for others.
const EXAMPLE_ORIGIN: &str = "https://api.example.com/";

/// Something to say of a line of a script.
#[derive(Debug)]
pub struct Finding {
    /// Where.
    pub spot: Spot,
    /// How bad it is.
    pub severity: Severity,
    /// What, on one line.
    pub title: String,
    /// More about it.
    pub note: Option<String>,
    /// What to do.
    pub help: Option<String>,
}

/// How bad something is. The worst comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It can never work.
    Error,
    /// The policy refuses it.
    Warning,
    /// The policy would refuse it, if it is what it looks like.
    Note,
}

/// What there is to say of a tenant's scripts, in their order.
pub fn judge(tenant: &Tenant, machine: &Machine, survey: Survey) -> Vec<Finding> {
    let modules: BTreeSet<&str> = survey.mentions.iter().filter_map(|mention| module(&mention.what)).collect();
    let has_hyper = modules.contains("vnd:hyper");
    // Where each call of a capability is at fault anyway, that is enough.
    let refused: BTreeSet<&str> =
        survey.mentions.iter().filter_map(|mention| not_granted(tenant, machine, &mention.what)).collect();
    let findings = survey.mentions.iter().filter_map(|Mention { spot, what }| {
        let finding = match what {
            What::Broken { message } => broken(tenant, spot, message.clone()),
            What::Module { name, narrowing } => {
                if let Some(message) = narrowing.as_ref().and_then(|narrowing| wrong(name, narrowing)) {
                    return Some(broken(tenant, spot, message));
                }
                let refusal =
                    refuse_module(tenant, machine, name).filter(|refusal| !refused.contains(refusal.capability))?;
                let title = format!("{name} is required, and the policy grants no {}", refusal.capability);
                warning(tenant, spot, title, &refusal)
            }
            What::Call { .. } => match refuse_call(tenant, machine, tenant.module_of(&spot.file), what)? {
                NotAllowed::Refused(refusal) => warning(tenant, spot, refusal.message(), &refusal),
                NotAllowed::Invalid(message) => Finding {
                    spot: spot.clone(),
                    severity: Severity::Warning,
                    title: format!("the call is invalid: {message}"),
                    note: Some(format!("tenant.{}", tenant.name)),
                    help: None,
                },
            },
            What::Url(Target { text, is_whole }) => {
                let refused = judge_url(tenant, machine, None, text, *is_whole).err().filter(|_| has_hyper)?;
                let NotAllowed::Refused(refusal) = refused else { return None };
                if refusal.reason == Reason::BadTarget {
                    return None;
                }
                let title = format!("if this URL is called: {}", refusal.message());
                Finding { severity: Severity::Note, ..warning(tenant, spot, title, &refusal) }
            }
        };
        Some(finding)
    });
    findings.collect()
}

fn broken(tenant: &Tenant, spot: &Spot, title: String) -> Finding {
    let note = Some(format!("tenant.{}", tenant.name));
    Finding { spot: spot.clone(), severity: Severity::Error, title, note, help: None }
}

/// What is wrong with what a module is narrowed to, as the run would say it.
fn wrong(module: &str, narrowing: &Narrowing) -> Option<String> {
    let question = Question::Check { module: module.to_owned(), narrowing: narrowing.clone() };
    broker::narrowing::check(&question).err().map(|error| error.message)
}

fn module(what: &What) -> Option<&str> {
    match what {
        What::Module { name, narrowing: _ } => Some(name),
        _ => None,
    }
}

/// The capability of a call of which the tenant is granted nothing.
fn not_granted(tenant: &Tenant, machine: &Machine, what: &What) -> Option<&'static str> {
    match refuse_call(tenant, machine, None, what)? {
        NotAllowed::Refused(refusal) if refusal.reason == Reason::NotGranted => Some(refusal.capability),
        _ => None,
    }
}

fn warning(tenant: &Tenant, spot: &Spot, title: String, refusal: &Refusal) -> Finding {
    let place = refusal.rule.as_ref().map_or_else(|| "no rule".to_owned(), |place| format!("rule: {place}"));
    let mut note = format!("tenant.{}: {}; {place}", tenant.name, refusal.reason);
    // No directory is opened that is not granted, and no secret leaves that is not bound.
    let is_reported = ![fs::CAPABILITY, secret::CAPABILITY].contains(&refusal.capability);
    if tenant.mode == Mode::Report && is_reported && refusal.is_open_to_rules() {
        note.push_str("; the tenant is in report mode, so a run lets it pass");
    }
    let help = refusal.operator_fix().map(|fix| format!("to allow it, add to the policy:\n{}", fix.trim_end()));
    Finding { spot: spot.clone(), severity: Severity::Warning, title, note: Some(note), help }
}

/// Why a module is of no use to the tenant. None: it may be of some.
fn refuse_module(tenant: &Tenant, machine: &Machine, name: &str) -> Option<Refusal> {
    let allow = &tenant.allow;
    // What is asked for stands for whatever the script will ask: without any grant all is refused alike.
    let (is_granted, example) = match name {
        "vnd:hyper" => (!allow.http.is_empty(), (http::CAPABILITY, "GET", EXAMPLE_ORIGIN)),
        "std:net" => (!allow.net.is_empty(), (net::CAPABILITY, "open", "tcp://db.example.com:5432")),
        "std:fs" => (!allow.fs.is_empty(), (fs::CAPABILITY, "read", "/data")),
        "std:kv" => (allow.kv.is_some(), (kv::CAPABILITY, "get", "key")),
        "std:secret" => (!tenant.secrets.is_empty(), (secret::CAPABILITY, "api_key", EXAMPLE_ORIGIN)),
        "std:workers" => (allow.workers.is_some(), (workers::CAPABILITY, "", "")),
        _ => return None,
    };
    let (capability, operation, target) = example;
    let call = Call::from_parts(capability, operation, target, None).filter(|_| !is_granted)?;
    match call.judge(tenant, machine) {
        Err(NotAllowed::Refused(refusal)) => Some(refusal),
        Ok(_) | Err(NotAllowed::Invalid(_)) => None,
    }
}

/// Why a call is refused, of a module that may have less than its tenant. None: it is allowed, as far as it is known.
fn refuse_call(tenant: &Tenant, machine: &Machine, narrowed: Option<&Module>, what: &What) -> Option<NotAllowed> {
    let What::Call { module, function, target, method } = what else { return None };
    let whole = target.as_ref().filter(|target| target.is_whole).map(|target| target.text.as_str());
    let call = match (module.as_str(), function.as_str()) {
        ("vnd:hyper", _) => {
            let Target { text, is_whole } = target.as_ref()?;
            if let Some(refused) = judge_url(tenant, machine, method.as_deref(), text, *is_whole).err() {
                return Some(refused);
            }
            // What is not known whole may be allowed: only the tenant's own rules are asked about that.
            Call::from_parts(http::CAPABILITY, method.as_deref()?, whole?, None)?
        }
        ("std:net", "connect" | "udp") => Call::from_parts(net::CAPABILITY, "open", whole?, None)?,
        ("std:fs", _) => {
            let action = FileAction::ALL.into_iter().find(|action| action.as_str() == function)?;
            Call::Fs { action, path: whole?.to_owned() }
        }
        ("std:workers", "run" | "map") => Call::Workers { module: whole?.to_owned() },
        // Whether it is bound to where it goes is for the request to tell.
        ("std:secret", "get") => {
            let name = whole.filter(|name| !tenant.secrets.contains_key(*name))?;
            Call::Secret { name: name.to_owned(), origin: EXAMPLE_ORIGIN.to_owned() }
        }
        ("std:task", detach::CAPABILITY) => Call::Detach,
        _ => return None,
    };
    call.judge_of(tenant, machine, narrowed.map(|module| module.path.as_str())).err()
}

impl Finding {
    /// The line, and what of it this is about. None: it is no piece of a line that can be drawn.
    pub fn snippet(&self) -> Option<Snippet> {
        let Spot { text, start, end, .. } = &self.spot;
        let span = usize::try_from(*start).ok()?..usize::try_from(*end).ok()?;
        let line = text.clone()?;
        line.get(span.clone())?;
        Some(Snippet { line, span })
    }

    /// The file as the operator knows it.
    pub fn file(&self, script: &Path) -> String {
        script.with_file_name(&self.spot.file).display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The guest that reads a tenant's text may be under its spell.
    #[test]
    fn a_spot_that_is_no_piece_of_a_line_is_drawn_without_one() {
        let finding = |text: Option<&str>, start, end| {
            let spot = Spot { file: "a".into(), line: 1, column: 1, text: text.map(str::to_owned), start, end };
            Finding { spot, severity: Severity::Note, title: String::new(), note: None, help: None }
        };
        for (text, start, end, is_drawn) in [
            (Some("abc"), 0, 3, true),
            (Some("abc"), 3, 3, true),
            (Some("abc"), 3, 4, false),
            (Some("abc"), 2, 1, false),
            (Some("abc"), u32::MAX, u32::MAX, false),
            (Some("é"), 1, 2, false),
            (None, 0, 0, false),
        ] {
            assert_eq!(finding(text, start, end).snippet().is_some(), is_drawn, "{text:?} {start} {end}");
        }
    }
}
