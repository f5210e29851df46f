//! Every example in the repository runs, as its first lines say.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::mpsc,
    thread,
};

use crate::support::{host::Host, neoc, output, repository, upstream::Upstream};

/// Where the examples listen.
const WRITTEN_ADDRESS: &str = "127.0.0.1:8080";

/// In place of it.
const ANY_ADDRESS: &str = "127.0.0.1:0";

/// Where the example of `std:net` connects to.
const WRITTEN_CACHE: &str = "127.0.0.1:6379";

/// Where those that fetch fetch from: a server that is no example, and one that is.
const WRITTEN_SERVER: &str = "127.0.0.1:9000";
const WRITTEN_UPSTREAM: &str = "127.0.0.1:8081";

/// A copy of the demo that listens on a free port and fetches from `upstream`, with its own data.
fn demo(upstream: &Upstream) -> (tempfile::TempDir, Host) {
    let folder = tempfile::tempdir().unwrap();
    let there = upstream.address.to_string();
    let examples = repository().join("examples");
    let policy = fs::read_to_string(repository().join("policies/demo.toml")).unwrap();
    let digest = fs::read_to_string(examples.join("digest/main.luau")).unwrap().replace(WRITTEN_SERVER, &there);
    fs::write(folder.path().join("digest.luau"), digest).unwrap();
    let policy = policy
        .replace(WRITTEN_ADDRESS, ANY_ADDRESS)
        .replace(WRITTEN_SERVER, &there)
        .replace("../data", "data")
        .replace("../examples/digest/main.luau", "digest.luau")
        .replace("../examples", &examples.display().to_string());
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    let host = Host::start(folder.path());
    (folder, host)
}

#[test]
fn the_demo_serves_its_five_tenants() {
    let upstream = Upstream::start();
    let (_folder, host) = demo(&upstream);
    assert_eq!(host.get("/hello?name=Ada").body, "Hello, Ada!\n");
    assert_eq!((host.get("/counter").body, host.get("/counter").body), ("visit 1\n".into(), "visit 2\n".into()));
    let digest = host.get("/digest").body;
    let lines: Vec<_> = digest.lines().collect();
    for (line, page) in lines.iter().zip(["/news", "/weather"]) {
        assert!(line.starts_with(&format!("{}: 200, ", upstream.url(page))) && line.ends_with(" bytes"), "{digest}");
    }
    assert_eq!((lines.len(), upstream.requests()), (2, 2), "{digest}");
    assert_eq!(host.get("/notes").body, "{\"notes\":[]}\n");
    assert_eq!(host.post("/notes/shopping", "milk").status, 201);
    assert_eq!(host.get("/notes/shopping").body, "milk");
    assert_eq!(host.get("/notes").body, "{\"notes\":[\"shopping\"]}\n");
    assert_eq!(host.get("/notes/absent").status, 404);
    assert_eq!(host.get("/notes/a/b").status, 404);
    assert_eq!(host.get("/primes?below=2000").body, "303 primes below 2000\n");
}

#[test]
fn the_caller_uses_a_secret_that_its_answer_does_not_hold() {
    let (folder, upstream, written) = (tempfile::tempdir().unwrap(), Upstream::start(), WRITTEN_SERVER);
    let read = |path: &str| {
        fs::read_to_string(repository().join(path)).unwrap().replace(written, &upstream.address.to_string())
    };
    fs::write(folder.path().join("main.luau"), read("examples/secrets/main.luau")).unwrap();
    let policy = read("policies/secrets.toml").replace(WRITTEN_ADDRESS, "127.0.0.1:0").replace("../data", "data");
    let policy = policy.replace("../examples/secrets/main.luau", "main.luau");
    let key = "from = \"env:API_KEY\"";
    assert!(policy.contains(key));
    fs::write(folder.path().join("policy.toml"), policy.replace(key, "from = \"file:key\"")).unwrap();
    fs::write(folder.path().join("key"), "demo").unwrap();
    let host = Host::start(folder.path());
    assert_eq!(host.get("/").body, "the API answered 200\n");
    assert_eq!(upstream.requests(), 1);
}

/// A server that keeps texts by the protocol of Redis; three of its commands. Gives those it got.
fn keep_texts(listener: TcpListener) -> mpsc::Receiver<Vec<String>> {
    let (got, commands) = mpsc::channel();
    thread::spawn(move || {
        let mut texts = HashMap::<String, String>::new();
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = BufReader::new(stream);
            while let Some(words) = read_command(&mut stream) {
                let reply = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                    ["SET", key, text] => {
                        texts.insert(key.to_owned(), text.to_owned());
                        "+OK\r\n".to_owned()
                    }
                    ["GET", key] => {
                        texts.get(key).map_or("$-1\r\n".to_owned(), |text| format!("${}\r\n{text}\r\n", text.len()))
                    }
                    ["INCR", key] => {
                        let count = texts.get(key).map_or(0, |text| text.parse().unwrap()) + 1;
                        texts.insert(key.to_owned(), count.to_string());
                        format!(":{count}\r\n")
                    }
                    _ => "-ERR unknown command\r\n".to_owned(),
                };
                let _ = got.send(words);
                stream.get_mut().write_all(reply.as_bytes()).unwrap();
            }
        }
    });
    commands
}

/// The words of a command, each written with its length. None at the end.
fn read_command(stream: &mut impl BufRead) -> Option<Vec<String>> {
    let count = |sign: char, stream: &mut dyn BufRead| {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        line.trim_end().strip_prefix(sign)?.parse::<usize>().ok()
    };
    let n_words = count('*', stream)?;
    let words = (0..n_words).map(|_| {
        let mut word = vec![0; count('$', stream)? + 2];
        stream.read_exact(&mut word).ok()?;
        word.truncate(word.len() - 2);
        String::from_utf8(word).ok()
    });
    words.collect()
}

#[test]
fn the_notes_of_the_cache_are_kept_by_a_server_that_speaks_in_lines() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (folder, there) = (tempfile::tempdir().unwrap(), listener.local_addr().unwrap().to_string());
    let commands = keep_texts(listener);
    let read = |path: &str| {
        let text = fs::read_to_string(repository().join(path)).unwrap();
        text.replace(WRITTEN_CACHE, &there).replace(WRITTEN_ADDRESS, ANY_ADDRESS).replace("../data", "data")
    };
    fs::write(folder.path().join("main.luau"), read("examples/cache/main.luau")).unwrap();
    let policy = read("policies/cache.toml").replace("../examples/cache/main.luau", "main.luau");
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    let host = Host::start(folder.path());
    assert_eq!(host.get("/tea").status, 404);
    // Lines of the protocol in a text are a text.
    let text = "green\r\n*1\r\n$8\r\nFLUSHALL\r\n";
    assert_eq!(host.post("/tea", text).body, "kept\n");
    assert_eq!(host.get("/tea").body, format!("{text} (2)\n"));
    assert_eq!((host.post("/none", "").status, host.get("/none").body), (201, " (1)\n".to_owned()));
    drop(host);
    let names: Vec<_> = commands.try_iter().map(|words| words[0].clone()).collect();
    assert_eq!(names, ["GET", "INCR", "SET", "GET", "INCR", "SET", "GET", "INCR"]);
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

/// The command that an example's first lines give, without the program.
fn command_of(example: &str) -> Vec<String> {
    let script = fs::read_to_string(repository().join(format!("examples/{example}/main.luau"))).unwrap();
    let head = script.lines().take_while(|line| line.starts_with("--"));
    let command = head.filter_map(|line| line.strip_prefix("--     neoc ")).next().expect("the first lines say how");
    command.split(' ').map(str::to_owned).collect()
}

/// What an example for `neoc run` prints.
fn run(example: &str) -> String {
    let got = output(neoc().current_dir(repository()).args(command_of(example)));
    assert_eq!((got.exit, got.stderr.as_str()), (0, ""), "{}", got.stdout);
    got.stdout
}

/// A copy of an example with a policy of its own and one of its upstream, on free ports.
fn serve(example: &str) -> (tempfile::TempDir, [Host; 2]) {
    assert_eq!(command_of(example), ["host", "--policy", &format!("examples/{example}/policy.toml")]);
    let folder = tempfile::tempdir().unwrap();
    let copy = |name: &str, upstream: &str| {
        let text = fs::read_to_string(repository().join("examples").join(example).join(name)).unwrap();
        let text = text.replace("../../data", "data").replace(WRITTEN_ADDRESS, ANY_ADDRESS);
        fs::write(folder.path().join(name), text.replace(WRITTEN_UPSTREAM, upstream)).unwrap();
    };
    let names: Vec<_> = fs::read_dir(repository().join("examples").join(example))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.iter().for_each(|name| copy(name, ANY_ADDRESS));
    let upstream = Host::start_file(&folder.path().join("upstream.toml"));
    let there = upstream.address.to_string();
    // Its own policy stays as it is: it would be loaded again.
    names.iter().filter(|name| *name != "upstream.toml").for_each(|name| copy(name, &there));
    let host = Host::start(folder.path());
    (folder, [host, upstream])
}

#[test]
fn the_fan_out_takes_the_first_mirror_and_names_the_service_that_fails() {
    let (_folder, [host, _upstream]) = serve("ngx-fan-out");
    let expected = "fast-mirror: 4.20\nstock: 12 left\nreviews failed: reviews answered 503\nshipping: 2 days\n";
    assert_eq!(host.get("/quote").body, expected);
}

#[test]
fn the_pipeline_does_each_job_once_and_ends() {
    let expected = "jobs waiting\t2\njobs done\t10\tsum\t385\nsignalled\ncleaned up\n\
        false\tcancelled: the task was cancelled\n";
    assert_eq!(run("tarantool-pipeline"), expected);
}

#[test]
fn the_summary_is_made_of_json_from_a_json_api() {
    let (_folder, [host, _upstream]) = serve("lune-request");
    let answer = host.get("/summary");
    assert_eq!((answer.status, answer.headers["content-type"].as_str()), (200, "application/json"));
    let expected = concat!(
        r#"{"done":["write the handler"],"failed":["to-do 3: status 404"],"#,
        r#""open":["write its policy"],"posted":201}"#,
        "\n"
    );
    assert_eq!(answer.body, expected);
}

#[test]
fn the_round_timer_runs_in_the_order_that_roblox_has() {
    let expected = "round\t3\nthe script goes on\ndeferred: when the script first waits\nround\t2\nround\t1\n\
        round is over\nreward for Ada\ncancelled\ttrue\ncancelled again\tfalse\ttrue\n";
    assert_eq!(run("roblox-task"), expected);
}
