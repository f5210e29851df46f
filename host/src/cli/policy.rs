//! `neoc policy`: what a policy says of calls that were made or might be.
//!
//! | verb | does |
//! |---|---|
//! | `explain` | says of one call whether it is allowed, and by which line |
//! | `suggest` | prints the smallest policy that allows what was recorded |
//! | `schema` | prints the JSON Schema of a policy file |
//! | `diff` | lists the recorded calls that two policies judge differently |

mod diff;
mod explain;
mod recorded;
mod schema;
mod suggest;

use clap::Subcommand;

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Say whether a call is allowed, and by which line. Exit code 0: allowed, 1: refused, 2: no such call or tenant.
    Explain(explain::Arguments),
    /// Print the smallest policy that allows what an audit file holds.
    Suggest(suggest::Arguments),
    /// List what two policies judge differently of an audit file. Exit code 1: a call would be refused that was not.
    Diff(diff::Arguments),
    /// Print the JSON Schema of a policy file, for editors.
    Schema,
}

/// Runs one.
pub fn main(verb: &Verb) -> super::Result {
    match verb {
        Verb::Explain(arguments) => explain::main(arguments),
        Verb::Suggest(arguments) => suggest::main(arguments),
        Verb::Diff(arguments) => diff::main(arguments),
        Verb::Schema => schema::main(),
    }
}
