//! A survey of a script and its modules: what is followed, and where things are. What is found in one text is
//! tested with `survey/reader.rs`.

use neoc_abi::event::{Event, Finish, Mode};
use neoc_abi::survey::{MAX_LINE_BYTES, Mention, Spot, Survey, What};

use super::Guest;
use super::require::load_as;

fn survey(files: &[(&str, &str)], source: &str) -> Survey {
    match load_as(Mode::Survey, files, source).1 {
        Finish::Surveyed(survey) => survey,
        other => panic!("{source}: {other:?}"),
    }
}

/// How many files were looked at, and each mention on one line.
fn shown(files: &[(&str, &str)], source: &str) -> (u32, Vec<String>) {
    let Survey { n_files, mentions, is_cut } = survey(files, source);
    assert!(!is_cut);
    let show = |Mention { spot, what }| {
        let what = match what {
            What::Broken { message } => message,
            What::Module { name, narrowing: None } => name,
            What::Module { name, narrowing: Some(narrowing) } => format!("{name} {:?}", narrowing.fields),
            What::Call { module, function, target, .. } => {
                format!("{module} {function} {}", target.map_or_else(|| "?".to_owned(), |target| target.text))
            }
            What::Url(target) => target.text,
        };
        format!("{}:{}:{}: {what}", spot.file, spot.line, spot.column)
    };
    (n_files, mentions.into_iter().map(show).collect())
}

#[test]
fn modules_are_followed_by_the_same_names_as_in_a_run() {
    let files = [
        ("lib/a.luau", "local b = require('../b')\nreturn require('@self/c') + require('@far/d') + require('./b')"),
        ("lib/a/c.luau", "return require('std:kv')"),
        ("lib/b.luau", "return require('../main')"),
        ("b.luau", "return require('./lib/a')"),
        ("far/d.luau", "return 1"),
        (".luaurc", "{\"aliases\": {\"far\": \"./far\"}}"),
        ("unused.luau", "return require('./absent')"),
    ];
    assert_eq!(shown(&files, "require('./lib/a')"), (6, vec!["lib/a/c.luau:1:16: std:kv".to_owned()]));
}

#[test]
fn what_can_never_be_required_is_said_as_in_a_run() {
    let files = [
        ("broken.luau", "return 1 +"),
        ("two.luau", "return 1"),
        ("two/init.luau", "return 1"),
        ("lib/a.luau", "return require('../../x')"),
    ];
    for (name, kind) in [
        ("./absent", "io"),
        ("../x", "invalid"),
        ("/x", "invalid"),
        ("@no/x", "invalid"),
        ("./two", "invalid"),
        ("./broken", "invalid"),
        ("std:none", "invalid"),
        ("none", "invalid"),
        ("", "invalid"),
    ] {
        let source = format!("require('{name}')");
        let (_, mentions) = shown(&files, &source);
        let (mut guest, _) = load_as(Mode::Script, &files, &source);
        guest.start(Event::Run(vec![]));
        guest.answer_all();
        let in_a_run = guest.failure().message;
        let said = mentions[0].strip_prefix("main.luau:1:9: ").expect(&mentions[0]);
        assert_eq!(in_a_run, format!("main.luau:1: {kind}: {said}"));
        assert_eq!(shown(&files, &format!("pcall(require, '{name}')")).1, Vec::<String>::new());
    }
    let (n_files, mentions) = shown(&files, "require('./lib/a')");
    let expected = "lib/a.luau:1:16: require: \"../../x\" leads out of the script's folder";
    assert_eq!((n_files, mentions), (2, vec![expected.to_owned()]));
    // At each place.
    assert_eq!(shown(&files, "require('./absent')\nrequire('./absent')").1.len(), 2);
}

#[test]
fn a_spot_is_a_piece_of_a_line() {
    let long = format!("--[[{}]] require('std:kv')", "x".repeat(MAX_LINE_BYTES));
    let spot = |line, column, text: Option<&str>, start, end| Spot {
        file: "main.luau".into(),
        line,
        column,
        text: text.map(str::to_owned),
        start,
        end,
    };
    for (source, expected) in [
        ("\n\n  require('std:kv')\r\n", spot(3, 11, Some("  require('std:kv')"), 10, 18)),
        ("--[[é]] require('std:kv')", spot(1, 17, Some("--[[é]] require('std:kv')"), 17, 25)),
        ("require('std:\\z\n kv')", spot(1, 9, Some("require('std:\\z"), 8, 15)),
        (&long, spot(1, 1016, None, 1015, 1023)),
    ] {
        assert_eq!(survey(&[], source).mentions[0].spot, expected, "{source}");
    }
}

#[test]
fn a_survey_is_cut_where_it_would_grow_too_large() {
    let line = format!("require('std:kv') --{}\n", "x".repeat(900));
    let Survey { n_files, mentions, is_cut } = survey(&[], &line.repeat(500));
    assert_eq!((n_files, mentions.len(), is_cut), (1, 500, false));
    let calls = "require('std:kv')".repeat(10_000);
    assert!(!survey(&[], &calls).is_cut, "a line that is too long is not repeated");
    let calls = format!("{}\n", "require('std:kv')".repeat(50)).repeat(500);
    assert!(survey(&[], &calls).is_cut);
}

#[test]
fn nothing_runs_and_nothing_is_left() {
    let (mut guest, finish): (Guest, _) = load_as(Mode::Survey, &[], "print('x') error('y')");
    assert!(matches!(finish, Finish::Surveyed(_)));
    assert!(guest.logged().is_empty());
    guest.start(Event::Run(vec![]));
    assert_eq!(guest.failure().message, "no script is loaded");
}
