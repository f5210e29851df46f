//! Why there is no permit: for the record, and for the script.

use neoc_abi::OperationError;

use crate::{limits::Exceeded, policy::Refusal};

/// Why there is no permit.
#[derive(Debug)]
pub enum Refused {
    /// The policy does not allow it.
    NotPermitted(Refusal),
    /// A limit is used up.
    OverLimit(Exceeded),
    /// The arguments make no sense.
    Invalid(OperationError),
}

impl Refused {
    /// The stable label for logs and counters.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotPermitted(refusal) => refusal.reason.as_str(),
            Self::OverLimit(exceeded) => exceeded.limit,
            Self::Invalid(_) => "invalid",
        }
    }

    /// One line for the operator.
    pub fn operator_detail(&self) -> String {
        match self {
            Self::NotPermitted(refusal) => refusal.operator_detail(),
            Self::OverLimit(exceeded) => exceeded.to_string(),
            Self::Invalid(error) => error.message.clone(),
        }
    }

    /// What the script gets.
    pub fn into_error(self) -> OperationError {
        match self {
            Self::NotPermitted(refusal) => refusal.into(),
            Self::OverLimit(exceeded) => exceeded.into(),
            Self::Invalid(error) => error,
        }
    }
}
