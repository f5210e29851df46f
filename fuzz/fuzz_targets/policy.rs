//! Any bytes as a policy file: no crash, and what is taken means the same when it is read again.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use neoc_fuzz::policy::Policy;

fuzz_target!(|text: &str| {
    let parse = || Policy::parse(text, Path::new("policy.toml"));
    match parse() {
        Ok(policy) => {
            let again = parse().expect("it was taken just now");
            assert_eq!(format!("{policy:?}"), format!("{again:?}"));
        }
        Err(errors) => {
            assert!(errors.iter().next().is_some(), "refused without a reason");
            for error in errors.iter() {
                assert!(error.line >= 1 && error.column >= 1, "{error}");
                assert!(!error.to_string().contains('\n'), "{error:?}");
            }
        }
    }
});
