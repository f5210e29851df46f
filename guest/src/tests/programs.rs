//! Random programs on a random host: whatever they do, they come to an end, and nothing is lost. So it is with one
//! in a VM, and with several at once.
//!
//! | module | holds |
//! |---|---|
//! | [`program`] | programs as data, and as Luau |
//! | [`hosting`] | the host |
//! | [`crowd`] | several programs in one VM at once, some of which the host cancels |
//! | ledger.luau | what each statement does, and what must hold then |
//!
//! `PROGRAMS=100000 SEED=7 cargo test random_programs` tries more of them, or others.

mod crowd;
mod hosting;
mod program;

use std::cell::{Cell, RefCell};

use mlua::{Function, Lua, Table};
use neoc_abi::event::{ALONE, Bundle, Event, Finish, Mode, Module, Start, Terms};
use neoc_abi::log::{Level, Record};
use neoc_abi::{Completion, wire};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use self::program::{Program, programs};
use crate::host::double::SAID;
use crate::scheduler::cancel;
use crate::scheduler::wait::census;
use crate::vm::Vm;
use crate::{operation, scheduler};

/// How many programs are tried.
const PROGRAMS: u32 = 10_000;

/// How many times several programs are tried in one VM at once.
const CROWDS: u32 = 1_500;

/// More turns than any program needs.
const MAX_TURNS: u64 = 200_000;

/// How many programs run in one VM, one after another. To make a VM takes longer than most programs.
const PROGRAMS_A_VM: usize = 100;

thread_local! {
    static TURNS: Cell<u64> = const { Cell::new(0) };
    static LEFT: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) };
}

/// Called with each turn of a task.
pub fn count_turn() {
    TURNS.set(TURNS.get() + 1);
    assert!(TURNS.get() < MAX_TURNS, "the tasks have turns for ever");
}

/// Called when a request was closed.
pub fn witness_close() {
    if !scheduler::any_open() {
        LEFT.with_borrow_mut(|left| left.extend(census::left_at_the_end()));
    }
}

/// A number from the environment.
fn setting(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn runner(n: u32, seed: u32) -> TestRunner {
    let config = Config { cases: n, failure_persistence: None, max_shrink_iters: 5_000, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&seed.to_le_bytes());
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

#[test]
fn random_programs_come_to_an_end_and_lose_nothing() {
    let (n, seed) = (setting("PROGRAMS", PROGRAMS), setting("SEED", 1));
    let tried = runner(n, seed).run(&(programs(), any::<u64>()), |(program, host)| {
        let complaints = try_program(&program, host);
        if std::env::var("STATS").is_ok() {
            let t = program.to_luau();
            println!(
                "STAT lines {} starts {} turns {} every {} finally {}",
                t.lines().count(),
                t.matches("ledger.start").count(),
                TURNS.get(),
                t.matches("'every'").count(),
                t.matches("ledger.finally").count()
            );
        }
        if complaints.is_empty() { Ok(()) } else { Err(TestCaseError::fail(complaints.join("\n"))) }
    });
    match tried {
        Ok(()) => {}
        Err(TestError::Fail(reason, (program, host))) => panic!(
            "{reason}\ncapacities {:?}, permits {:?}, host {host}, of {n} programs with SEED={seed}:\n{}",
            program.capacities,
            program.permits,
            program.to_luau()
        ),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

#[test]
fn random_programs_in_one_vm_at_once_come_to_their_ends_and_lose_nothing() {
    let (n, seed) = (setting("CROWDS", CROWDS), setting("SEED", 1));
    let crowds = proptest::collection::vec((programs(), any::<bool>()), 2..4);
    let tried = runner(n, seed).run(&(crowds, any::<u64>()), |(crowd, host)| {
        let complaints = crowd::try_crowd(&crowd, host);
        if complaints.is_empty() { Ok(()) } else { Err(TestCaseError::fail(complaints.join("\n"))) }
    });
    match tried {
        Ok(()) => {}
        Err(TestError::Fail(reason, (crowd, host))) => {
            let shown = |(program, is_cancelled): &(Program, bool)| {
                let Program { capacities, permits, .. } = program;
                let text = program.to_luau();
                format!("capacities {capacities:?}, permits {permits:?}, cancelled: {is_cancelled}\n{text}")
            };
            let shown: Vec<_> = crowd.iter().map(shown).collect();
            panic!("{reason}\nhost {host}, of {n} crowds with SEED={seed}:\n{}", shown.join("\n"))
        }
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

/// Runs a program on a host of that seed. Gives what was wrong.
fn try_program(program: &Program, host: u64) -> Vec<String> {
    // What a program that failed has left.
    scheduler::close(ALONE);
    operation::close(ALONE);
    hosting::begin(host);
    TURNS.set(0);
    LEFT.take();
    let mut stage = STAGE.take().unwrap_or_else(Stage::new);
    let mut complaints = stage.try_program(program);
    if stage.n_programs >= PROGRAMS_A_VM {
        complaints.extend(stage.leaks());
    } else if complaints.is_empty() {
        // One in which something went wrong is used no more: so what is shrunk begins afresh.
        STAGE.set(Some(stage));
    }
    complaints
}

/// What the scheduler itself says, for a ledger; and where handles are listed as long as they exist.
fn new_probe(lua: &Lua) -> (Table, Table) {
    let handles: Table = lua.load("return setmetatable({}, { __mode = 'k' })").eval().expect("a table");
    let answer = |answer: fn() -> bool| lua.create_function(move |_, (): ()| Ok(answer())).expect("a function");
    let answers = [
        ("is_refused", answer(cancel::is_cancelled)),
        ("is_of_cancelled_request", answer(cancel::is_of_cancelled_request)),
    ];
    let probe = lua.create_table_from(answers).expect("a table");
    probe.raw_set("handles", &handles).expect("set");
    (probe, handles)
}

/// A VM with a ledger in it, for many programs, one after another: it must be as new after each.
struct Stage {
    vm: Vm,
    /// Makes a ledger.
    new_ledger: Function,
    /// What the scheduler itself says, for ledgers.
    probe: Table,
    /// Weak: the handles that still exist, of all tasks so far.
    handles: Table,
    n_programs: usize,
}

impl Stage {
    fn new() -> Self {
        let vm = Vm::new().expect("a VM");
        let lua = vm.lua();
        let new_ledger = lua.load(include_str!("programs/ledger.luau")).set_name("=ledger").into_function();
        let (probe, handles) = new_probe(lua);
        Self { new_ledger: new_ledger.expect("the ledger compiles"), vm, probe, handles, n_programs: 0 }
    }

    fn try_program(&mut self, program: &Program) -> Vec<String> {
        self.n_programs += 1;
        let arguments = (&self.probe, program.capacities.clone(), program.permits.clone());
        let ledger: Table = self.new_ledger.call(arguments).expect("the ledger is sound");
        self.vm.lua().globals().raw_set("ledger", &ledger).expect("set");
        let complaints = run(&mut self.vm, &program.to_luau(), &ledger);
        self.vm.lua().globals().raw_set("ledger", mlua::Nil).expect("set");
        complaints
    }

    /// What is left of tasks that have ended, when the VM has collected its garbage.
    fn leaks(self) -> Vec<String> {
        let Self { mut vm, new_ledger, handles, .. } = self;
        // Luau keeps a function's first closures with its code: the code of the ledger, and the last program's.
        drop(new_ledger);
        load(&mut vm, "");
        let lua = vm.lua();
        lua.gc_collect().and_then(|()| lua.gc_collect()).expect("collects");
        let n = handles.pairs::<mlua::Value, mlua::Value>().count();
        if n == 0 { Vec::new() } else { vec![format!("{n} tasks that have ended are still known")] }
    }
}

fn load(vm: &mut Vm, source: &str) {
    let entry = Module { name: "program.luau".into(), source: source.into() };
    let bundle = Bundle { entry, mode: Mode::Script, heap_bytes: 64 << 20, narrowed: vec![] };
    vm.load(&wire::encode(&bundle).expect("encodes"));
    assert_eq!(finishes(), [Finish::Done], "{source}");
}

fn run(vm: &mut Vm, source: &str, ledger: &Table) -> Vec<String> {
    load(vm, source);
    let check = |name: &str| ledger.get::<Function>(name).expect("in the ledger").call::<Vec<String>>(());
    let check = |name: &str| check(name).expect("the ledger's checks are sound");
    let terms = Terms { request: ALONE, random_seed: 7, limits: super::LIMITS };
    let start = Start { event: Event::Run(vec![]), terms };
    let mut n_waiting = vm.start(&wire::encode(&start).expect("encodes"));
    let mut answered = false;
    loop {
        // The host calls again once the answer is out: what was detached begins then.
        if n_waiting > 0 && !answered && SAID.with_borrow(|said| !said.finished.is_empty()) {
            answered = true;
            n_waiting = vm.complete(&wire::encode(&Vec::<Completion>::new()).expect("encodes"));
        }
        let mut complaints = hosting::audit();
        complaints.extend(check("check_quiet"));
        if n_waiting > 0 {
            complaints.extend(census::faults_when_parked());
        } else {
            complaints.extend(check("check_end"));
            complaints.extend(faults_at_the_end(ledger));
        }
        if !complaints.is_empty() || n_waiting == 0 {
            break complaints;
        }
        let batch = hosting::next_batch();
        if batch.is_empty() {
            break vec![format!("{n_waiting} tasks wait, and the host works on nothing")];
        }
        n_waiting = vm.complete(&wire::encode(&batch).expect("encodes"));
    }
}

fn faults_at_the_end(ledger: &Table) -> Vec<String> {
    let mut faults = LEFT.take();
    let ended_well: Option<bool> =
        ledger.get::<Function>("main_ended_well").and_then(|main| main.call(())).expect("the ledger is sound");
    match (finishes().as_slice(), ended_well) {
        ([Finish::Done], Some(true)) | ([Finish::Failed(_)], Some(false) | None) => {}
        (finishes, ended_well) => faults.push(format!("the handler ended well: {ended_well:?}; finish: {finishes:?}")),
    }
    faults.extend(errors_in_the_log());
    faults
}

/// How the guest has finished since the last call.
fn finishes() -> Vec<Finish> {
    let finished = SAID.with_borrow_mut(|said| std::mem::take(&mut said.finished));
    finished.iter().map(|bytes| wire::decode(bytes).expect("a finish")).collect()
}

/// Lines that no program is to cause.
fn errors_in_the_log() -> Vec<String> {
    let known = ["a task failed, and none awaited it", "more tasks failed", "tasks waited for each other"];
    let logged = SAID.with_borrow_mut(|said| std::mem::take(&mut said.logged));
    let records = logged.iter().map(|bytes| wire::decode::<Record>(bytes).expect("a record"));
    let errors = records.filter(|record| record.level == Level::Error);
    errors.map(|record| record.text).filter(|text| !known.iter().any(|known| text.contains(known))).collect()
}
