//! Whole scripts against a double of the host. A test plays the host: it looks at the operations that were
//! submitted and completes them when it likes.

mod cancelling;
mod copies;
mod coroutines;
mod errors;
mod interpreter;
mod modules;
mod narrowing;
pub mod programs;
mod requests;
mod require;
mod sandboxing;
mod sharing;
mod sites;
mod survey;
mod tasks;
mod values;
mod waiting;
mod workers;

use neoc_abi::event::{ALONE, Bundle, Event, Finish, Limits, Mode, Module, ScriptError, Start, Terms};
use neoc_abi::log::{Level, Record};
use neoc_abi::{Call, Completion, ErrorKind, Operation, OperationError, Outcome, Reply, http, time, wire};
use serde_bytes::ByteBuf;

use crate::host::double::{Answer, SAID, Said};
use crate::vm::Vm;

/// How much there may be in the VMs of the tests.
const LIMITS: Limits = Limits { pending_operations: 64, tasks: 1000, timers: 1000 };

/// A VM, and what it has said.
struct Guest {
    vm: Vm,
}

impl Guest {
    /// Loads a source text.
    fn load(source: &str, mode: Mode) -> (Self, Finish) {
        Self::load_bytes(source.as_bytes(), mode, 16 * 1024 * 1024)
    }

    fn load_bytes(source: &[u8], mode: Mode, heap_bytes: u64) -> (Self, Finish) {
        Self::load_bundle(source, mode, heap_bytes, &[])
    }

    /// Loads a source text of a tenant with modules that have less.
    fn load_bundle(source: &[u8], mode: Mode, heap_bytes: u64, narrowed: &[&str]) -> (Self, Finish) {
        let answer_at_once = SAID.take().answer_at_once;
        let answer_wait: fn() -> Vec<u8> = || wire::encode(&friendly_batch()).expect("encodes");
        SAID.set(Said { answer_at_once, answer_wait: Some(answer_wait), ..Said::default() });
        let mut vm = Vm::new().expect("a VM");
        let entry = Module { name: "main.luau".into(), source: source.to_vec() };
        let narrowed = narrowed.iter().map(|path| (*path).to_owned()).collect();
        vm.load(&wire::encode(&Bundle { entry, mode, heap_bytes, narrowed }).expect("encodes"));
        let mut guest = Self { vm };
        let finish = guest.finish().expect("load finishes at once");
        (guest, finish)
    }

    /// Loads a script and runs its top level until it waits or ends.
    fn run(source: &str) -> Self {
        let (mut guest, finish) = Self::load(source, Mode::Script);
        assert_eq!(finish, Finish::Done, "{source}");
        guest.start(Event::Run(vec!["first".into(), "second".into()]));
        guest
    }

    /// As [`Guest::run`], on a host that answers at once what `answer` answers.
    fn run_on(answer: Answer, source: &str) -> Self {
        let (mut guest, finish) = Self::load(source, Mode::Script);
        assert_eq!(finish, Finish::Done, "{source}");
        SAID.with_borrow_mut(|said| said.answer_at_once = Some(answer));
        guest.start(Event::Run(vec![]));
        guest
    }

    fn start(&mut self, event: Event<'_>) {
        self.start_as(ALONE, event);
    }

    fn start_as(&mut self, request: u32, event: Event<'_>) {
        let terms = Terms { request, random_seed: 7, limits: LIMITS };
        self.vm.start(&wire::encode(&Start { event, terms }).expect("encodes"));
    }

    /// The operations submitted since the last call.
    fn submitted(&mut self) -> Vec<(u32, Operation)> {
        let submitted = SAID.with_borrow_mut(|said| std::mem::take(&mut said.submitted));
        submitted.into_iter().map(|(id, bytes)| (id, operation_of(&bytes))).collect()
    }

    fn complete(&mut self, outcomes: Vec<(u32, Outcome)>) {
        let batch: Vec<_> = outcomes.into_iter().map(|(id, outcome)| Completion { id, outcome }).collect();
        self.vm.complete(&wire::encode(&batch).expect("encodes"));
    }

    /// Answers all operations in order, and those that follow, until the guest asks for nothing more.
    fn answer_all(&mut self) {
        while self.answer_batch() {}
    }

    /// Answers the operations that there are; whether there were any.
    fn answer_batch(&mut self) -> bool {
        let batch = friendly_batch();
        if !batch.is_empty() {
            self.vm.complete(&wire::encode(&batch).expect("encodes"));
        }
        !batch.is_empty()
    }

    /// The operations that the guest has cancelled since the last call, with whether it waits for that.
    fn cancelled(&mut self) -> Vec<(u32, bool)> {
        SAID.with_borrow_mut(|said| std::mem::take(&mut said.cancelled))
    }

    /// Confirms what the guest has cancelled and waits for. Gives the operations' numbers.
    fn confirm_cancelled(&mut self) -> Vec<u32> {
        let ids: Vec<u32> = self.cancelled().into_iter().filter_map(|(id, confirm)| confirm.then_some(id)).collect();
        self.complete(ids.iter().map(|id| (*id, Err(OperationError::new(ErrorKind::Cancelled, "stopped")))).collect());
        ids
    }

    /// The places where the VM stood still since the last call.
    fn stalls(&mut self) -> Vec<String> {
        SAID.with_borrow_mut(|said| std::mem::take(&mut said.stalls))
    }

    /// The one finish since the last call, if there is one.
    fn finish(&mut self) -> Option<Finish> {
        let mut finished = SAID.with_borrow_mut(|said| std::mem::take(&mut said.finished));
        assert!(finished.len() <= 1, "finish is called once");
        finished.pop().map(|bytes| wire::decode(&bytes).expect("a finish"))
    }

    fn failure(&mut self) -> ScriptError {
        match self.finish() {
            Some(Finish::Failed(error)) => error,
            other => panic!("expected a failure, got {other:?}"),
        }
    }

    /// The lines logged since the last call.
    fn logged(&mut self) -> Vec<Record> {
        let logged = SAID.with_borrow_mut(|said| std::mem::take(&mut said.logged));
        logged.into_iter().map(|bytes| wire::decode(&bytes).expect("a record")).collect()
    }

    /// What `print` wrote since the last call, joined by a semicolon.
    fn printed(&mut self) -> String {
        let mut lines = Vec::new();
        for Record { level, text } in self.logged() {
            assert!(level == Level::Print, "{text}");
            lines.push(text);
        }
        lines.join(";")
    }
}

/// What a call that was submitted asks for.
fn operation_of(bytes: &[u8]) -> Operation {
    wire::decode::<Call>(bytes).expect("a call").operation
}

/// The outcome that a friendly host gives: waits take as long as asked, a request echoes its URL, a worker
/// its arguments.
fn answer(operation: Operation) -> Outcome {
    Ok(match operation {
        Operation::Time(time::Operation::Wait { seconds }) => Reply::Time(time::Reply::Waited { seconds }),
        Operation::Http(http::Operation::Request(request)) => Reply::Http(http::Reply::Response(http::Response {
            status: 200,
            headers: vec![
                ("x-url".into(), ByteBuf::from(request.url.as_bytes())),
                ("x-url".into(), ByteBuf::from(b"again")),
            ],
            body: request.url.into(),
        })),
        Operation::Workers(neoc_abi::workers::Operation::Run(work)) => {
            Reply::Workers(neoc_abi::workers::Reply::Returned(work.arguments))
        }
        Operation::Module(operation) => return require::find(&operation),
        other => panic!("no answer to {other:?}"),
    })
}

/// What a friendly host gives next: the outcomes of all operations that were submitted and not cancelled, and
/// its word that the cancelled ones have stopped.
fn friendly_batch() -> Vec<Completion> {
    let (submitted, cancelled) =
        SAID.with_borrow_mut(|said| (std::mem::take(&mut said.submitted), std::mem::take(&mut said.cancelled)));
    let is_cancelled = |id: u32| cancelled.iter().any(|(cancelled, _)| *cancelled == id);
    let answered = submitted
        .into_iter()
        .filter(|(id, _)| !is_cancelled(*id))
        .map(|(id, bytes)| (id, operation_of(&bytes)))
        // Those are answered at once, always.
        .filter(|(_, operation)| !matches!(operation, Operation::Detach(_) | Operation::Narrow(_)))
        .map(|(id, operation)| Completion { id, outcome: answer(operation) });
    let stopped = cancelled
        .iter()
        .filter(|(_, confirm)| *confirm)
        .map(|(id, _)| Completion { id: *id, outcome: Err(OperationError::new(ErrorKind::Cancelled, "stopped")) });
    answered.chain(stopped).collect()
}

/// Runs a script to its end with a friendly host; what it printed must be `expected`.
fn check(source: &str, expected: &str) {
    let mut guest = Guest::run(source);
    guest.answer_all();
    assert_eq!(guest.finish(), Some(Finish::Done), "{source}");
    assert_eq!(guest.printed(), expected, "{source}");
}
