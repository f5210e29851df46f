//! A limit that was hit, in the words that script, operator and metrics share.

use std::{fmt, time::Duration};

use neoc_abi::OperationError;

/// Whose limit it is: what has to end, or to be asked for more, before a retry can succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// One request, with its workers and detached tasks.
    Request,
    /// All requests of the tenant together.
    Tenant,
    /// All tenants together.
    Host,
}

/// A limit that was hit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeded {
    /// Its policy key, which is the label of metrics too.
    pub limit: &'static str,
    /// Its value, as the policy has it.
    pub value: String,
    /// Whose it is.
    pub owner: Owner,
    /// What is limited, such as `outbound requests, redirects counted`. Empty where the key says it.
    pub what: &'static str,
    /// When a retry can succeed. None: time does not help.
    pub retry_after: Option<Duration>,
}

impl Exceeded {
    /// A limit with its value, which no time brings back.
    pub fn new(owner: Owner, limit: &'static str, value: impl fmt::Display) -> Self {
        Self { limit, value: value.to_string(), owner, what: "", retry_after: None }
    }

    /// Says what is limited.
    pub fn what(self, what: &'static str) -> Self {
        Self { what, ..self }
    }

    /// Says when a retry can succeed.
    pub fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// The error of a function, with its name in front.
    pub fn at(self, api: &str) -> OperationError {
        let message = format!("{api}: {self}");
        OperationError { message, ..self.into() }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "request",
            Self::Tenant => "tenant",
            Self::Host => "host",
        })
    }
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, value, owner, what, retry_after } = self;
        write!(f, "over the {owner}'s limit {limit} = {value}")?;
        if !what.is_empty() {
            write!(f, " ({what})")?;
        }
        if retry_after.is_some() { f.write_str("; try again later") } else { Ok(()) }
    }
}

impl From<Exceeded> for OperationError {
    fn from(exceeded: Exceeded) -> Self {
        // Rounded up: a retry at this very time succeeds.
        let ms = |wait: Duration| wait.as_micros().div_ceil(1000).try_into().unwrap_or(u64::MAX);
        let retry_after_ms = exceeded.retry_after.map(ms);
        Self { retry_after_ms, ..Self::limit(exceeded.limit, exceeded.to_string()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_reads_key_value_owner_and_when_to_try_again() {
        let exceeded = Exceeded::new(Owner::Tenant, "operations", "100/h").retry_after(Duration::from_micros(1_500));
        let error = OperationError::from(exceeded);
        assert_eq!(error.message, "over the tenant's limit operations = 100/h; try again later");
        assert_eq!((error.limit.as_deref(), error.retry_after_ms), (Some("operations"), Some(2)));
        let error = Exceeded::new(Owner::Request, "subrequests", 50).what("redirects counted").at("hyper.get");
        assert_eq!(error.message, "hyper.get: over the request's limit subrequests = 50 (redirects counted)");
        assert_eq!((error.limit.as_deref(), error.retry_after_ms), (Some("subrequests"), None));
    }
}
