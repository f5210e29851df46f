//! What a script can see and cannot change.

use neoc_abi::api;
use neoc_abi::event::{Finish, Mode};

use super::{Guest, check};
use crate::stdlib::MODULES;

/// Lists all globals and all that modules hold, one dotted name a line, tables as their members.
const WALK: &str = "
    local names = {}
    local function walk(prefix, value)
        if type(value) == 'table' and value ~= _G then
            for key, member in value do walk(prefix .. '.' .. tostring(key), member) end
        else
            table.insert(names, prefix)
        end
    end
    for name, value in _G do walk(name, value) end
    for _, name in { 'std:fs', 'std:json', 'std:kv', 'std:log', 'std:net', 'std:secret', 'std:task', 'std:workers', 'vnd:hyper' } do walk(name, require(name)) end
    table.sort(names)
    for _, name in names do print(name) end";

#[test]
fn a_script_sees_exactly_what_is_listed() {
    let seen = Guest::run(WALK).printed().replace(';', "\n") + "\n";
    let listed = include_str!("../../globals.txt");
    assert_eq!(seen, listed, "globals.txt must be:\n{seen}");
}

#[test]
fn nothing_a_script_can_reach_can_be_changed() {
    let changes = [
        "string.format = nil",
        "table.insert = print",
        "_G.print = nil",
        "rawset(string, 'rep', nil)",
        "coroutine.resume = nil",
        "require('std:kv').get = nil",
        "getmetatable('').__index = print",
        "getmetatable('').__add = print",
        "setmetatable(_G, {})",
        "rawset(require('std:json').array({}), 1, 1) getmetatable(require('std:json').array({})).x = 1",
        "getmetatable(require('std:json').null).x = 1",
        "local mt = getmetatable(vector.zero) mt.__index = print",
        "table.clear(math)",
    ];
    for change in changes {
        let mut guest = Guest::run(&format!("print(pcall(function() {change} end))"));
        assert!(guest.printed().starts_with("false\t"), "{change}");
    }
}

#[test]
fn a_scripts_own_globals_are_its_own() {
    check("x = 1 print(x, _G.x, rawget(_G, 'x')) print = 5 _G.print(print)", "1\tnil\tnil;5");
}

#[test]
fn functions_on_the_stack_are_not_given_out() {
    check(
        "print(pcall(debug.info, 1, 'f'))
         print(pcall(debug.info, print, 'sf'))
         local function f() return debug.info(1, 'nl') end
         print(f())
         print(debug.info(f, 'n'), debug.info(coroutine.running(), 0, 's') ~= nil)",
        "false\tdebug.info: the option 'f' is not available;false\tdebug.info: the option 'f' is not available;\
         f\t3;f\ttrue",
    );
}

#[test]
fn require_knows_its_modules_and_gives_the_same_table_each_time() {
    let list = "std:fs, std:json, std:kv, std:log, std:net, std:secret, std:task, std:workers, vnd:hyper";
    check(
        "print(require('std:kv') == require('std:kv'), table.isfrozen(require('std:kv')))
         print(pcall(require, 'x'))
         print(pcall(require, 5))",
        &format!(
            "true\ttrue;false\tinvalid: require: no module \"x\"; there are {list}, and your own under ./, ../ or @;\
             false\tinvalid: require: a module's name must be a string, got number; there are {list}"
        ),
    );
}

/// Functions, and methods of what the modules make, as the modules hold them: `std:task.channel:put`.
const LIST_FUNCTIONS: &str = "
    local found = {}
    for _, name in { 'std:fs', 'std:json', 'std:kv', 'std:log', 'std:net', 'std:secret', 'std:task', 'std:workers', 'vnd:hyper' } do
        for key, value in require(name) do
            if type(value) == 'function' then table.insert(found, name .. '.' .. key) end
        end
    end
    local task = require('std:task')
    for kind, object in { channel = task.channel(1), semaphore = task.semaphore(1) } do
        for _, key in { 'put', 'get', 'close', 'is_closed', 'count', 'acquire', 'release', 'free', 'with' } do
            if object[key] then table.insert(found, 'std:task.' .. kind .. ':' .. key) end
        end
    end
    table.insert(found, '.print') table.insert(found, '.require')
    table.sort(found)
    print(table.concat(found, ' '))";

#[test]
fn every_function_of_a_module_is_tagged() {
    let tagged = api::MODULES
        .iter()
        .flat_map(|module| module.functions.iter().map(move |(name, _)| format!("{}.{name}", module.name)));
    // What is made by asking the host is called by the tests of the whole program.
    let is_made_here = |name: &String| !name.contains("std:net.connection:") && !name.contains("std:net.socket:");
    let mut tagged: Vec<_> = tagged.filter(is_made_here).collect();
    tagged.sort();
    check(LIST_FUNCTIONS, &tagged.join(" "));
}

#[test]
fn the_type_files_say_of_every_function_whether_it_yields() {
    for (module, file) in type_files() {
        let functions = api::MODULES.iter().find(|tagged| tagged.name == module).expect("tagged").functions;
        for (name, tag) in functions {
            let line = tag_line(file, module, name).unwrap_or_else(|| panic!("{module}: {name} is not declared"));
            assert_eq!(line, format!("-- {}", tag.sentence()), "{module}: {name}");
        }
    }
}

/// The last line of the comment above a function or a method.
fn tag_line<'a>(file: &'a str, module: &str, name: &str) -> Option<&'a str> {
    let short = module.split_once(':').expect("a prefix").1;
    let declares = |line: &str| match name.split_once(':') {
        Some((_, method)) => line.starts_with(&format!("\t{method}: ")),
        None => {
            let declaration = format!("function {short}.{name}");
            line.strip_prefix(&declaration).is_some_and(|rest| rest.starts_with(['(', '<']))
        }
    };
    // A method is looked for below its type.
    let skipped = name.split_once(':').map_or(0, |(kind, _)| {
        let kind = format!("{}{}", kind[..1].to_uppercase(), &kind[1..]);
        file.find(&format!("export type {kind}")).expect("a type")
    });
    let lines: Vec<_> = file[skipped..].lines().collect();
    let index = lines.iter().position(|line| declares(line))?;
    Some(lines[index.checked_sub(1)?].trim())
}

fn type_files() -> [(&'static str, &'static str); 9] {
    [
        ("std:fs", include_str!("../../types/fs.d.luau")),
        ("std:json", include_str!("../../types/json.d.luau")),
        ("std:kv", include_str!("../../types/kv.d.luau")),
        ("std:log", include_str!("../../types/log.d.luau")),
        ("std:net", include_str!("../../types/net.d.luau")),
        ("std:secret", include_str!("../../types/secret.d.luau")),
        ("std:task", include_str!("../../types/task.d.luau")),
        ("std:workers", include_str!("../../types/workers.d.luau")),
        ("vnd:hyper", include_str!("../../types/hyper.d.luau")),
    ]
}

#[test]
fn the_type_files_declare_exactly_what_the_modules_hold() {
    let files = type_files();
    assert_eq!(files.len(), MODULES.len());
    for (module, file) in files {
        let (_, finish) = Guest::load(file, Mode::Check);
        assert_eq!(finish, Finish::Done, "{module}");
        // A declaration is a line such as `function kv.get(` or `json.null = `.
        let prefix = format!("{}.", module.split_once(':').expect("a prefix").1);
        let names = file.lines().filter_map(|line| {
            let name = line.strip_prefix("function ").unwrap_or(line).strip_prefix(&prefix)?;
            name.split(|character: char| !character.is_ascii_alphanumeric() && character != '_').next()
        });
        let mut declared: Vec<_> = names.map(|name| format!("{module}.{name}")).collect();
        declared.sort();
        let listed = include_str!("../../globals.txt").lines();
        let held: Vec<_> = listed.filter(|name| name.starts_with(&format!("{module}."))).collect();
        assert_eq!(declared, held, "{module}");
    }
    for file in [include_str!("../../types/error.d.luau"), include_str!("../../types/require.d.luau")] {
        assert_eq!(Guest::load(file, Mode::Check).1, Finish::Done);
    }
}

#[test]
fn hostile_scripts_get_errors() {
    let cases = [
        "pcall(table.move, { 1 }, 1, 8000, 1, {})",
        "assert(not pcall(string.rep, 'x', 2^30))",
        "assert(not pcall(buffer.create, 2^30))",
        "assert(not pcall(buffer.create, -1))",
        "pcall(table.unpack, table.create(5e5, 0))",
        "assert(not pcall(utf8.char, 2^31))",
        "local t = {} t.t = t assert(not pcall(require('vnd:hyper').request, t))",
        "assert(not pcall(require('vnd:hyper').request, { url = t, [0/0 == 0 and 1 or 2] = 1 }))",
        "print(table.unpack(table.create(5000, 'xxxxxxxxxx')))",
        "print(setmetatable({}, { __tostring = function() return string.rep('x', 1e6) end }))",
    ];
    for case in cases {
        let mut guest = Guest::run(case);
        assert_eq!(guest.finish(), Some(Finish::Done), "{case}");
    }
}
