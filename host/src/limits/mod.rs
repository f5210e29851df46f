//! How much a tenant may use: rates.
//!
//! Nothing here waits, and nothing here knows what it counts. Time comes in from outside, as a clock
//! type or a duration, so that every test decides what time it is. Each limiter belongs to one tenant
//! and one class of event: a tenant at its limit cannot use up another's, and no key that a stranger
//! chooses ever makes a table grow.
//!
//! | module | holds |
//! |---|---|
//! | [`rate`] | so many events in a time; refused events say when to try again |

pub mod rate;

pub use rate::{OverLimit, RateLimiter};
