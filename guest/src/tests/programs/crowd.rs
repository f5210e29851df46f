//! Several programs in one VM, each a request of its own. Some are cancelled in their midst, and so are those that
//! would wait for ever: in such a VM nobody else ends them.

use mlua::{Function, Table};
use neoc_abi::event::{Event, Finish, Start, Terms};
use neoc_abi::{Completion, wire};

use super::program::Program;
use super::{LEFT, TURNS, census, errors_in_the_log, hosting, load, new_probe};
use crate::host::double::SAID;
use crate::tests::LIMITS;
use crate::vm::Vm;
use crate::{operation, scheduler};

/// After so many batches those programs are cancelled that are to be.
const BATCHES_BEFORE: usize = 3;

/// A program and whether the host cancels it.
type Attempt = (Program, bool);

/// What is known of a request.
struct Request {
    number: u32,
    ledger: Table,
    finish: Option<Finish>,
    is_cancelled: bool,
    is_over: bool,
}

/// Runs programs at once on a host of that seed. Gives what was wrong.
pub fn try_crowd(crowd: &[Attempt], host: u64) -> Vec<String> {
    // What a crowd that failed has left.
    for number in 1..=u32::try_from(crowd.len()).expect("a few") {
        scheduler::close(number);
        operation::close(number);
    }
    hosting::begin(host);
    TURNS.set(0);
    LEFT.take();
    let mut vm = Vm::new().expect("a VM");
    let mut requests: Vec<Request> = Vec::new();
    for ((program, _), number) in crowd.iter().zip(1..) {
        let ledger = new_ledger(&vm, program);
        load(&mut vm, &format!("local ledger = ledger\n{}", program.to_luau()));
        SAID.with_borrow_mut(|said| (said.requests.clear(), said.n_left.clear()));
        let terms = Terms { request: number, random_seed: 7, limits: LIMITS };
        let start = Start { event: Event::Run(vec![]), terms };
        requests.push(Request { number, ledger, finish: None, is_cancelled: false, is_over: false });
        vm.start(&wire::encode(&start).expect("encodes"));
        settle(&mut vm, &mut requests);
    }
    let mut complaints = serve(&mut vm, &mut requests, crowd);
    if complaints.is_empty() {
        complaints.extend(requests.iter().flat_map(faults_of));
        complaints.extend(LEFT.take());
        complaints.extend(errors_in_the_log());
    }
    complaints
}

fn new_ledger(vm: &Vm, program: &Program) -> Table {
    let lua = vm.lua();
    let (probe, _handles) = new_probe(lua);
    let new_ledger = lua.load(include_str!("ledger.luau")).set_name("=ledger").into_function().expect("compiles");
    let arguments = (probe, program.capacities.clone(), program.permits.clone());
    let ledger: Table = new_ledger.call(arguments).expect("the ledger is sound");
    lua.globals().raw_set("ledger", &ledger).expect("set");
    ledger
}

fn serve(vm: &mut Vm, requests: &mut [Request], crowd: &[Attempt]) -> Vec<String> {
    for n_batches in 0.. {
        let mut complaints = hosting::audit();
        complaints.extend(census::faults_when_parked());
        complaints.extend(requests.iter().flat_map(|request| call(&request.ledger, "check_quiet")));
        if !complaints.is_empty() || requests.iter().all(|request| request.is_over) {
            return complaints;
        }
        if n_batches == BATCHES_BEFORE {
            let chosen = requests.iter_mut().zip(crowd).filter(|(_, (_, is_cancelled))| *is_cancelled);
            chosen.for_each(|(request, _)| cancel(vm, request));
            settle(vm, requests);
            continue;
        }
        let batch = hosting::next_batch();
        if !batch.is_empty() {
            vm.complete(&wire::encode(&batch).expect("encodes"));
        } else if let Some(request) = requests.iter_mut().find(|request| !request.is_over && !request.is_cancelled) {
            cancel(vm, request);
        } else {
            return vec!["requests that were cancelled do not end, and the host works on nothing".to_owned()];
        }
        settle(vm, requests);
    }
    Vec::new()
}

fn cancel(vm: &mut Vm, request: &mut Request) {
    if !request.is_over {
        request.is_cancelled = true;
        vm.cancel_request(request.number);
    }
}

/// Takes notice of what the guest has said, and lets detached tasks begin.
fn settle(vm: &mut Vm, requests: &mut [Request]) {
    let mut any_goes_on = false;
    SAID.with_borrow_mut(|said| {
        let finished = said.requests.drain(..).filter(|(import, _)| *import == "finish").map(|(_, number)| number);
        let ends = said.finished.drain(..).zip(said.n_left.drain(..));
        for (number, (bytes, n_left)) in finished.zip(ends).filter(|(number, _)| *number > 0) {
            let request = &mut requests[number as usize - 1];
            assert!(request.finish.is_none(), "a request ends once");
            request.finish = Some(wire::decode(&bytes).expect("a finish"));
            request.is_over = n_left == 0;
            any_goes_on |= n_left > 0;
        }
        for number in said.over.drain(..) {
            let request = &mut requests[number as usize - 1];
            assert!(request.finish.is_some() && !request.is_over, "a request is over once, and after its end");
            request.is_over = true;
        }
    });
    if any_goes_on {
        vm.complete(&wire::encode(&Vec::<Completion>::new()).expect("encodes"));
        settle(vm, requests);
    }
}

fn faults_of(request: &Request) -> Vec<String> {
    let mut faults = call(&request.ledger, "check_end");
    let main = request.ledger.get::<Function>("main_ended_well").and_then(|main| main.call::<Option<bool>>(()));
    match (&request.finish, main.expect("the ledger is sound")) {
        (Some(Finish::Done), Some(true)) | (Some(Finish::Failed(_)), Some(false) | None) => {}
        // It had returned, and waited for its tasks.
        (Some(Finish::Done), _) | (Some(Finish::Failed(_)), _) if request.is_cancelled => {}
        (finish, main) => faults.push(format!("the handler ended well: {main:?}; finish: {finish:?}")),
    }
    faults
}

fn call(ledger: &Table, check: &str) -> Vec<String> {
    let check: Function = ledger.get(check).expect("in the ledger");
    check.call(()).expect("the ledger's checks are sound")
}
