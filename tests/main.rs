//! Tests of the whole program, as its users run it.
//!
//! | module | holds |
//! |---|---|
//! | [`audit`] | the file that has a line for every decision, and the log without it |
//! | [`cases`] | each folder below `tests/cases`: a script, its policy, what must come of it |
//! | [`checks`] | what `neoc check` says of scripts, and that a run agrees |
//! | [`cli`] | what the verbs print and exit with |
//! | [`concurrency`] | which calls overlap and which do not |
//! | [`conformance`] | Luau's own test files, in the guest |
//! | [`contexts`] | a call that yields works wherever it stands, and each tag of the registry is true |
//! | [`denials`] | a refusal's fix, pasted, makes the call work |
//! | [`egress`] | nothing is reached that the policy does not name, whatever a script, a name server or an upstream does |
//! | [`examples`] | every example and policy in the repository runs |
//! | [`host`] | routing, limits, drain, one tenant's failure beside another's work |
//! | [`drawings`] | what a person sees of a broken policy |
//! | [`interpreter`] | Luau's interpreter in the guest does as native Luau's does |
//! | [`layers`] | the order of the layers, and docs that match the tree |
//! | [`modules`] | a tenant's own modules: what is read when, and what stays |
//! | [`narrowing`] | modules that have less than their tenant, and that they cannot get round it |
//! | [`operations`] | every operation that a guest can ask for, against grants that do not cover it |
//! | [`preemption`] | kills at any moment, and what they leave |
//! | [`programs`] | random programs end, and leave the host whole |
//! | [`report`] | report mode, and what is made of its records: suggest, diff, explain |
//! | [`reload`] | a policy replaced while the host runs: all of it or nothing, and no request lost |
//! | [`resident`] | one VM for all requests of a tenant: what they share, and what stays each one's own |
//! | [`secrets`] | what a script may use and not read: where it goes, and that nothing shows it |
//! | [`tasks`] | what cancelling frees, detached tasks, what stays flat |
//! | [`workers`] | further VMs of a request: at once, on one budget, gone with it |
//! | [`support`] | a running host, a sandbox, an upstream, an HTTP client |

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod audit;
mod cases;
mod checks;
mod cli;
mod concurrency;
mod conformance;
mod contexts;
mod denials;
mod drawings;
mod egress;
mod examples;
mod host;
mod interpreter;
mod layers;
mod modules;
mod narrowing;
mod operations;
mod preemption;
mod programs;
mod reload;
mod report;
mod resident;
mod secrets;
mod support;
mod tasks;
mod workers;
