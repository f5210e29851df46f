//! Any bytes as a policy file, and as one with a file that it includes: no crash, and what is taken means the same
//! when it is read again.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use neoc_fuzz::policy::{Policy, PolicyErrors, Source};

fuzz_target!(|bytes: &[u8]| {
    check(&[("policy.toml", bytes)]);
    // Split where the text has an empty comment: the rest is an included file.
    if let Some(middle) = bytes.windows(3).position(|window| window == b"\n#\n") {
        check(&[("policy.toml", &bytes[..middle]), ("tenants/a.toml", &bytes[middle + 3..])]);
    }
});

fn parse(files: &[(&str, &[u8])]) -> Result<Policy, PolicyErrors> {
    let source = |(name, bytes): &(&str, &[u8])| Source::from_bytes(Path::new(name), bytes.to_vec());
    Policy::parse_files(files.iter().map(source).collect(), Vec::new())
}

fn check(files: &[(&str, &[u8])]) {
    match parse(files) {
        Ok(policy) => {
            let again = parse(files).expect("it was taken just now");
            assert_eq!(
                format!("{:?}{:?}", policy.host, policy.tenants),
                format!("{:?}{:?}", again.host, again.tenants)
            );
        }
        Err(errors) => {
            assert!(errors.iter().next().is_some(), "refused without a reason");
            for error in errors.iter() {
                assert!(error.place.line >= 1 && error.column >= 1, "{error}");
                assert!(!error.to_string().contains('\n'), "{error:?}");
            }
        }
    }
}
