//! What the fix of a refusal does once it is pasted: it allows that very call, and none of its neighbours.
//!
//! The policy that was in force is the one that has the record's version. It is judged here as `neoc policy explain`
//! does, which is as a run does. A fix may uncover the next obstacle: the host first, then its address, then the table
//! of the module. Not judged again: a target that the record does not have as the script wrote it, because it was cut,
//! or can be read in two ways; and what the script took from itself, whatever the policy.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, LazyLock, Mutex},
};

use neoc::{
    audit::record::Record,
    cli::load_policy,
    policy::{Machine, Mode, Place, Policy, Reason, Refusal, Source, call::Call, fs},
};

use super::neighbours::{self, Asked};

/// Most fixes of one call: for the host, for its address, for the module that asks.
const MAX_FIXES: usize = 3;

/// A script without a policy is refused everything; its fixes are for a policy that is still to be written.
const NO_POLICY: &str = "[tenant.run]\nscript = \"script.luau\"\n";

/// The policies that were in force in this process, by version.
static KNOWN: LazyLock<Mutex<BTreeMap<String, Arc<InForce>>>> = LazyLock::new(|| {
    let none = InForce::of(Policy::parse(NO_POLICY, Path::new("policy.toml")).unwrap());
    Mutex::new(BTreeMap::from([(String::new(), none)]))
});

/// What was pasted already, and works.
static DONE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// A policy, and the texts that it was made from.
struct InForce {
    policy: Policy,
    texts: Vec<String>,
}

/// Notes a policy as its files are now. A broken one is never in force.
pub fn note(file: &Path) {
    if let Ok(policy) = load_policy(file) {
        KNOWN.lock().unwrap().entry(policy.version()).or_insert_with(|| InForce::of(policy));
    }
}

/// What is wrong with a refusal's fix. The record is of a policy that was [noted](note).
pub fn problem(record: &Record<'_>, machine: &Machine) -> Option<String> {
    let reason = Reason::ALL.into_iter().find(|reason| Some(reason.as_str()) == record.reason.as_deref())?;
    // All that the answer depends on.
    let key = format!("{:?} {machine:?}", Record { time: "".into(), request: "".into(), site: None, ..record.clone() });
    if DONE.lock().unwrap().contains(&key) {
        return None;
    }
    let problem = check(record, reason, machine).err();
    if problem.is_none() {
        DONE.lock().unwrap().insert(key);
    }
    problem
}

/// What is wrong with a fix, for a call that a policy refuses.
pub fn problem_of_fix(policy: &str, asked: &Asked, fix: &str) -> Option<String> {
    let policy = InForce::of(Policy::parse(policy, Path::new("policy.toml")).unwrap());
    let refusal = asked.judge(&policy.policy, &Machine::default()).unwrap_err().unwrap();
    paste(&policy, asked, &refusal, fix, &Machine::default()).err()
}

fn check(record: &Record<'_>, reason: Reason, machine: &Machine) -> Result<(), String> {
    let known = KNOWN.lock().unwrap().get(&*record.policy).map(Arc::clone);
    let known = known.ok_or("the policy that decided is not known")?;
    if reason == Reason::NarrowedByScript {
        // No policy refused it, so there is nothing to ask again.
        return if record.rule.is_none() { Ok(()) } else { Err("no rule decided".to_owned()) };
    }
    let is_path = record.capability == fs::CAPABILITY;
    let is_as_written = (reason != Reason::BadTarget || is_path) && !record.target.ends_with('…');
    if !is_as_written {
        return record.fix.as_deref().map_or(Ok(()), |fix| known.with(&record.tenant, fix).map(drop));
    }
    let call = Call::from_parts(&record.capability, &record.operation, &record.target, record.address);
    let asked = Asked {
        tenant: record.tenant.to_string(),
        module: record.module.as_deref().map(str::to_owned),
        call: call.ok_or("no policy decides on it")?,
    };
    let refusal = asked.judge(&known.policy, machine).err().ok_or("the policy allows it")?;
    let refusal = refusal.ok_or("it makes no sense")?;
    // In report mode a call goes on, to what refuses it next.
    let is_first = known.policy.tenant(&asked.tenant).is_some_and(|tenant| tenant.mode == Mode::Enforce);
    if is_first && !is_same(&refusal, record) {
        let (detail, fix) = (refusal.operator_detail(), refusal.operator_fix());
        return Err(format!("asked again, the policy says {detail}, {fix:?}"));
    }
    record.fix.as_deref().map_or(Ok(()), |fix| paste(&known, &asked, &refusal, fix, machine))
}

fn is_same(refusal: &Refusal, record: &Record<'_>) -> bool {
    // The run may have been given the file by another name.
    let file_name = |rule: &str| rule.rsplit('/').next().unwrap_or_default().to_owned();
    Some(refusal.reason.as_str()) == record.reason.as_deref()
        && refusal.rule.as_ref().map(Place::in_short) == record.rule.as_deref().map(file_name)
        && refusal.operator_fix() == record.fix.as_deref()
}

/// Pastes a fix, and what the next obstacle has, until the call is allowed.
fn paste(known: &InForce, asked: &Asked, refusal: &Refusal, fix: &str, machine: &Machine) -> Result<(), String> {
    let mut fixes = fix.to_owned();
    for _ in 0..MAX_FIXES {
        let policy = known.with(&asked.tenant, &fixes)?;
        let Err(next) = asked.judge(&policy, machine) else {
            return neighbours::unchanged(&known.policy, &policy, asked, refusal.reason, machine)
                .map_err(|change| format!("its fix changes another call, {change}:\n{fixes}"));
        };
        let next = next.ok_or("it makes no sense once its fix is pasted")?;
        let still = |what: &str| format!("its fix {what}: {}", next.operator_detail());
        let more = next.operator_fix().ok_or_else(|| still("cannot help"))?;
        if refusal.operator_fix() == Some(more) || fixes.contains(more) {
            return Err(still("does not allow it"));
        }
        fixes.push_str(more);
    }
    Err(format!("it is refused after these fixes:\n{fixes}"))
}

// === impl InForce ===

impl InForce {
    fn of(policy: Policy) -> Arc<Self> {
        let texts = policy.texts().map(str::to_owned).collect();
        Arc::new(Self { policy, texts })
    }

    /// The policy with something at the end of the file that has the tenant.
    fn with(&self, tenant: &str, fix: &str) -> Result<Policy, String> {
        let has_tenant = |text: &String| {
            toml::from_str::<toml::Table>(text)
                .is_ok_and(|file| file.get("tenant").is_some_and(|tenants| tenants.get(tenant).is_some()))
        };
        let at = if self.texts.len() == 1 { Some(0) } else { self.texts.iter().position(has_tenant) };
        let at = at.ok_or("no file has its tenant")?;
        let sources = self.texts.iter().enumerate().map(|(n, text)| {
            let text = if n == at { format!("{}\n{fix}", text.trim_end()) } else { text.clone() };
            Source::new(Path::new(&format!("{n}.toml")), &text)
        });
        Policy::parse_files(sources.collect(), Vec::new())
            .map_err(|errors| format!("its fix makes no policy: {errors}\n{fix}"))
    }
}
