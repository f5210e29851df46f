//! Every example in the repository runs, as its first lines say.

use std::fs;

use crate::support::{host::Host, neoc, output, repository};

/// A copy of the demo that listens on a free port, with its own data.
fn demo() -> (tempfile::TempDir, Host) {
    let folder = tempfile::tempdir().unwrap();
    // The digest fetches from its own host, so the port must be known beforehand.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let here = format!("127.0.0.1:{port}");
    let examples = repository().join("examples");
    let policy = fs::read_to_string(repository().join("policies/demo.toml")).unwrap();
    let digest = fs::read_to_string(examples.join("digest/main.luau")).unwrap().replace("127.0.0.1:8080", &here);
    fs::write(folder.path().join("digest.luau"), digest).unwrap();
    let policy = policy
        .replace("127.0.0.1:8080", &here)
        .replace("../data", "data")
        .replace("../examples/digest/main.luau", "digest.luau")
        .replace("../examples", &examples.display().to_string());
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    let host = Host::start(folder.path());
    (folder, host)
}

#[test]
fn the_demo_serves_its_four_tenants() {
    let (_folder, host) = demo();
    assert_eq!(host.get("/hello?name=Ada").body, "Hello, Ada!\n");
    assert_eq!((host.get("/counter").body, host.get("/counter").body), ("visit 1\n".into(), "visit 2\n".into()));
    assert_eq!(host.get("/digest").body, "200 Hello, digest!\n200 visit 3\n");
    assert_eq!(host.get("/notes").body, "{\"notes\":[]}\n");
    assert_eq!(host.post("/notes/shopping", "milk").status, 201);
    assert_eq!(host.get("/notes/shopping").body, "milk");
    assert_eq!(host.get("/notes").body, "{\"notes\":[\"shopping\"]}\n");
    assert_eq!(host.get("/notes/absent").status, 404);
    assert_eq!(host.get("/notes/a/b").status, 404);
}

#[test]
fn the_receipt_is_made_by_modules() {
    let script = repository().join("examples/modules/main.luau");
    let got = output(neoc().arg("run").arg(script));
    assert_eq!(got.stdout, "2 tea         4.80\n1 cake        3.15\ntotal         7.95\n", "{}", got.stderr);
}

#[test]
fn the_word_counter_counts_its_arguments() {
    let script = repository().join("examples/words/main.luau");
    let got = output(neoc().arg("run").arg(script).args(["--", "a b a"]));
    assert_eq!(got.stdout, "2\ta\n1\tb\n", "{}", got.stderr);
}
