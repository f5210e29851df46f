//! What a script narrows for itself: read with each call, and checked when it is required.

use neoc_abi::{
    Operation, OperationError,
    narrowing::{Narrowing as Written, Operation as Question},
};

use super::Refused;
use crate::policy::{Narrowing, fs, http, kv, net};

/// What narrows a call.
///
/// # Errors
/// Of kind `invalid`, for what no guest of ours would send: it has asked when the script required the module.
pub(super) fn of_call(operation: &Operation, written: &Written) -> Result<Narrowing, Refused> {
    let capability = match operation {
        Operation::Http(_) => http::CAPABILITY,
        Operation::Fs(_) => fs::CAPABILITY,
        Operation::Kv(_) => kv::CAPABILITY,
        Operation::Net(_) if operation.can_be_narrowed() => net::CAPABILITY,
        _ => return Err(invalid("a call that cannot be narrowed")),
    };
    Narrowing::parse(capability, written).map_err(invalid)
}

/// Answers a script that requires a module with less. A tenant may always ask; the rate of operations bounds how often.
///
/// # Errors
/// Of kind `invalid`, with what is wrong.
pub fn check(question: &Question) -> Result<(), OperationError> {
    let Question::Check { module, narrowing } = question;
    let capability = match module.as_str() {
        "vnd:hyper" => http::CAPABILITY,
        "std:net" => net::CAPABILITY,
        "std:fs" => fs::CAPABILITY,
        "std:kv" => kv::CAPABILITY,
        _ => return Err(OperationError::invalid(format!("require: {module:.100} takes no second argument"))),
    };
    let parsed = Narrowing::parse(capability, narrowing);
    parsed.map(drop).map_err(|wrong| OperationError::invalid(format!("require: {module}: {wrong}")))
}

fn invalid(message: impl Into<String>) -> Refused {
    Refused::Invalid(OperationError::invalid(message))
}
