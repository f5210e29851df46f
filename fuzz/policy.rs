//! The host's pure policy layer, taken in by its path: what is fuzzed is what runs, without the rest of the host.

#[path = "../host/src/policy/mod.rs"]
pub mod policy;
