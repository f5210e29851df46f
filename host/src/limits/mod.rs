//! How much a tenant may use: rates, totals, and the words for what is over them.
//!
//! Nothing here waits, and nothing here knows what it counts. Time comes in from outside, as a clock
//! type or a duration, so that every test decides what time it is. Each limiter belongs to one tenant
//! and one class of event: a tenant at its limit cannot use up another's, and no key that a stranger
//! chooses ever makes a table grow.
//!
//! | module | holds |
//! |---|---|
//! | [`rate`] | so many events in a time; refused events say when to try again |
//! | [`total`] | so many in all |
//! | [`exceeded`] | a limit that was hit, in the words that script, operator and metrics share |

pub mod exceeded;
pub mod rate;
pub mod total;

pub use exceeded::{Exceeded, Owner};
pub use rate::{OverLimit, RateLimiter};
pub use total::{Total, UsedUp};
