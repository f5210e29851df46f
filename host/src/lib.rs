//! neoc: a host for scripts that the operator does not trust.
//!
//! # Layout
//!
//! Each layer may use only what is above it; `tests/layers.rs` keeps the order.
//!
//! | module | holds |
//! |---|---|
//! | [`policy`] | what a tenant may do: TOML as written to [`policy::Policy`] as enforced. Pure |
//! | [`limits`] | how much: rates. Time is an argument |
//! | [`audit`] | one record and one counter per decision |
//! | [`broker`] | the only door to an effect: a permit or a refusal |
//! | [`capability`] | doing it: one file per capability, each effect takes a permit |
//! | [`script_log`] | where a script's lines go |
//! | [`runtime`] | wasmtime: engine, images, VMs, the fair queue |
//! | [`tenant`] | a tenant that serves: policy, loaded script, meters |
//! | [`server`] | the listener and the life of a request |
//! | [`cli`] | one file per verb |

pub mod audit;
pub mod broker;
pub mod capability;
pub mod cli;
pub mod limits;
pub mod policy;
pub mod request_id;
pub mod runtime;
pub mod script_log;
pub mod server;
pub mod tenant;
