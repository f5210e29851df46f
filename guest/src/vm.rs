//! One VM from birth to its last answer. The exports are thin calls of [`Vm`].
//!
//! A VM serves one start, of the number [`ALONE`], or many at once, each with a number of its own.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use mlua::thread::AsyncThread;
use mlua::{FromLuaMulti, Function, IntoLuaMulti, Lua, MultiValue, Table, Thread, Value};
use neoc_abi::event::{
    ALONE, Bundle, Event, Finish, Limits, Mode, Module, Request, Response, SPARE_BYTES, ScriptError, Start, Terms,
};
use neoc_abi::log::Level;
use neoc_abi::wire;
use neoc_abi::workers::Work;
use serde_bytes::Bytes;

use crate::failure::Failure;
use crate::plain::Template;
use crate::request::Returned;
use crate::scheduler::{Ownership, cancel, wait};
use crate::threads::Threads;
use crate::{
    failure, host, interrupt, limits, memory, module, operation, request, sandbox, scheduler, seal, stdlib, survey,
    value,
};

/// A VM, and what it is busy with.
pub struct Vm {
    lua: Lua,
    /// The table that `prelude.luau` returned.
    prelude: Table,
    every: Every,
    threads: Rc<Threads>,
    /// What `load` has left for `start`.
    entry: Entry,
    /// Where first tasks leave their ends, with the numbers of their requests.
    ends: Ends,
    /// Requests whose answers are out, and whose detached tasks go on.
    outlived: BTreeSet<u32>,
    /// Whether there was a start before.
    used: bool,
    /// See [`interrupt`].
    interrupt: *const (),
}

/// What every request needs. To look it up by name makes a string each time, and under a memory limit a protected
/// call for the string.
struct Every {
    run_cleanups: Function,
    take_unawaited: Function,
    seed: Function,
    request: Template,
}

type Ends = Rc<RefCell<VecDeque<(u32, Finish)>>>;

/// What a start is for.
#[derive(Clone, Copy)]
enum Kind {
    Request,
    Run,
    Work,
}

/// What a start begins with.
enum Entry {
    /// Nothing was loaded, or it was loaded to be checked only.
    Absent,
    /// The handler of requests.
    Handler(Function),
    /// The top level of a script.
    Script(Function),
}

impl Vm {
    /// A VM without a script.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new() -> mlua::Result<Self> {
        let (lua, prelude) = sandbox::new_vm()?;
        let interrupt = interrupt::place(&lua)?;
        let (every, threads) = (Every::find(&lua, &prelude)?, Rc::new(Threads::new(&prelude)?));
        let (entry, ends, outlived) = (Entry::Absent, Ends::default(), BTreeSet::new());
        let mut vm = Self { lua, prelude, every, threads, entry, ends, outlived, used: false, interrupt };
        vm.rehearse().map_err(|error| mlua::Error::runtime(error.message))?;
        vm.threads.forget();
        vm.lua.gc_collect()?;
        // The allocators keep what they once had.
        drop(Vec::<u8>::with_capacity(SPARE_BYTES));
        seal::seal(&vm.lua)?;
        vm.place_anew()?;
        Ok(vm)
    }

    /// Goes through a request. Luau notes in bytecode and metatables where it has found what, and would in each VM anew:
    /// a word here and there, each in a page that the host has to put back.
    fn rehearse(&mut self) -> Result<(), ScriptError> {
        let handler = self.lua.load("return { status = 200, headers = {}, body = '' }").into_function();
        let handler = handler.map_err(|error| failure::from_message(failure::describe_error(&error)))?;
        self.entry = Entry::Handler(handler);
        self.call_prelude("begin_entry", ("", ""))?;
        let nothing = Bytes::new(&[]);
        let request = Request { method: "", path: "", query: Vec::new(), headers: vec![("", nothing)], body: nothing };
        let limits = Limits { pending_operations: 1, tasks: 1, timers: 1 };
        let terms = Terms { request: ALONE, random_seed: 0, limits };
        self.start_event(Start { event: Event::Request(request), terms }).map_err(failure::from_message)?;
        scheduler::run_until_parked();
        self.close_ended();
        self.ends.take();
        self.call_prelude("end_entry", true)?;
        self.call_prelude("forget_entry", ())?;
        (self.entry, self.used) = (Entry::Absent, false);
        scheduler::forget();
        Ok(())
    }

    /// Makes once more what every script and every request changes: behind all else, and side by side.
    fn place_anew(&mut self) -> mlua::Result<()> {
        self.prelude.raw_get::<Function>("forget_entry")?.call::<()>(())?;
        let ends = std::mem::replace(&mut self.ends, Rc::new(RefCell::new(VecDeque::with_capacity(1))));
        let threads = std::mem::replace(&mut self.threads, Rc::new(Threads::new(&self.prelude)?));
        // Dropped, they would leave holes, which what comes next would fill.
        std::mem::forget((ends, threads));
        self.threads.prepare(&self.lua)
    }

    /// The VM itself, for a test that has functions of its own in it.
    #[cfg(test)]
    pub fn lua(&self) -> &Lua {
        &self.lua
    }

    /// Where Luau's interrupt is.
    pub fn interrupt_place(&self) -> *const () {
        self.interrupt
    }

    /// Compiles a bundle's entry and keeps its handler or its top level. Finishes at once.
    ///
    /// The host keeps the pages that this changes. No collection runs here: it would mark each object
    /// of the heap, and so change nearly every page of it, for the sake of a little garbage.
    pub fn load(&mut self, bytes: &[u8]) {
        let loaded = match wire::decode(bytes) {
            Ok(bundle) => self.load_bundle(bundle),
            Err(_) => Err(failure::from_message("the bundle cannot be read")),
        };
        host::finish(ALONE, 0, &loaded.unwrap_or_else(Finish::Failed));
    }

    fn load_bundle(&mut self, bundle: Bundle) -> Result<Finish, ScriptError> {
        let Bundle { entry, mode, heap_bytes, narrowed } = bundle;
        // 0 would be no limit at all.
        let heap_bytes = usize::try_from(heap_bytes).unwrap_or(usize::MAX).max(1);
        self.lua.set_memory_limit(heap_bytes).map_err(|error| failure::from_message(error.to_string()))?;
        if mode == Mode::Survey {
            return Ok(Finish::Surveyed(survey::survey(&self.lua, entry)));
        }
        if !narrowed.is_empty() {
            self.call_prelude("narrow", narrowed)?;
        }
        self.entry = self.load_entry(&entry, mode)?;
        Ok(Finish::Done)
    }

    fn load_entry(&self, entry: &Module, mode: Mode) -> Result<Entry, ScriptError> {
        sandbox::restart_clock();
        self.call_prelude("begin_entry", (&*entry.name, module::path::module_of(&entry.name)))?;
        let compile = |entry: &Module| {
            let compiled = module::compile(&self.lua, &entry.name, &entry.source, None);
            compiled.map_err(|error| failure::from_message(error.message))
        };
        #[cfg(feature = "conformance")]
        let top_level = crate::conformance::entry(&self.lua, entry, compile)?;
        #[cfg(not(feature = "conformance"))]
        let top_level = compile(entry)?;
        match mode {
            Mode::Check | Mode::Survey => Ok(Entry::Absent),
            Mode::Script => Ok(Entry::Script(top_level)),
            Mode::Handler => self.handler(&entry.name, top_level).map(Entry::Handler),
        }
    }

    /// Runs the top level, which returns the handler. Effects are refused meanwhile.
    fn handler(&self, name: &str, top_level: Function) -> Result<Function, ScriptError> {
        let returned = self.protect(top_level)?;
        let handler = match &returned {
            Value::Table(table) => table.raw_get("http").unwrap_or(Value::Nil),
            other => other.clone(),
        };
        match handler {
            Value::Function(handler) => {
                self.call_prelude("end_entry", returned)?;
                Ok(handler)
            }
            _ => Err(failure::from_message(format!(
                "{name}: must return a handler: function(request) ... end, or a table with it under http; got {}",
                returned.type_name()
            ))),
        }
    }

    /// Calls a function of the prelude that does not call a script's.
    fn call_prelude(&self, name: &str, arguments: impl IntoLuaMulti) -> Result<(), ScriptError> {
        let function = self.prelude.raw_get::<Function>(name);
        let called = function.and_then(|function| function.call::<()>(arguments));
        called.map_err(|error| failure::from_message(failure::describe_error(&error)))
    }

    fn protect(&self, function: Function) -> Result<Value, ScriptError> {
        let protect = self.prelude.raw_get::<Function>("protect");
        match protect.and_then(|protect| protect.call::<(bool, Value)>(function)) {
            Ok((true, value)) => Ok(value),
            Ok((false, failure)) => Err(failure::script_error(&self.lua, &failure)),
            Err(error) => Err(failure::from_message(failure::describe_error(&error))),
        }
    }

    /// Starts the work of an event and runs until all tasks wait. Gives how many do.
    pub fn start(&mut self, bytes: &[u8]) -> usize {
        let (request, started) = match wire::decode::<Start<'_>>(bytes) {
            Ok(start) => (start.terms.request, self.start_event(start)),
            Err(_) => (ALONE, Err("the event cannot be read".to_owned())),
        };
        match started {
            Ok(()) => self.run(),
            Err(message) => {
                host::finish(request, 0, &Finish::Failed(failure::from_message(message)));
                scheduler::n_alive()
            }
        }
    }

    /// Cancels all tasks of a request and runs until all others wait. Gives how many do.
    pub fn cancel_request(&mut self, request: u32) -> usize {
        cancel::cancel_request(request);
        self.run()
    }

    fn start_event(&mut self, start: Start<'_>) -> Result<(), String> {
        let Start { event, terms: Terms { request, random_seed, limits } } = start;
        limits::set(limits);
        let described = |error| failure::describe_error(&error);
        let thread = self.threads.take(&self.lua).map_err(described)?;
        // Once: tasks of other requests may be in the midst of using both.
        if !std::mem::replace(&mut self.used, true) || request == ALONE {
            self.thaw(random_seed).map_err(described)?;
        }
        match (event, &self.entry) {
            (Event::Request(inbound), Entry::Handler(handler)) => {
                let body = thread.clone().into_async(handler).map_err(described)?;
                request::give(&self.lua, &thread, &self.every.request, &inbound).map_err(described)?;
                self.begin(request, thread, body, |lua, returned| match returned {
                    Returned::Text(text) => Ok(Finish::Response(Response::text(text))),
                    Returned::Value(ok, value) => Kind::Request.end(lua, ok, &value),
                });
            }
            (Event::Run(arguments), Entry::Script(script)) => {
                let strings = arguments.iter().map(|text| self.lua.create_string(text).map(Value::String));
                let mut values: MultiValue = strings.collect::<Result<_, _>>().map_err(described)?;
                values.push_front(Value::Function(script.clone()));
                let body = thread.clone().into_async(values).map_err(described)?;
                self.begin(request, thread, body, |lua, (ok, value)| Kind::Run.end(lua, ok, &value));
            }
            (Event::Work(work), Entry::Handler(_) | Entry::Script(_)) => {
                let values = self.work(work).map_err(|failure| failure.into_operation_error().message)?;
                let body = thread.clone().into_async(values).map_err(described)?;
                self.begin(request, thread, body, |lua, (ok, value)| Kind::Work.end(lua, ok, &value));
            }
            (Event::Request(_), _) => return Err("no handler is loaded".to_owned()),
            (Event::Run(_) | Event::Work(_), _) => return Err("no script is loaded".to_owned()),
        }
        Ok(())
    }

    /// What a worker begins with: a function and its arguments.
    fn work(&self, work: Work) -> Result<MultiValue, Failure> {
        let Work { module, file, arguments } = work;
        let arguments = value::unpack_row(&self.lua, &arguments)?;
        let function: Function = self.prelude.raw_get("work")?;
        Ok((function, module, file, arguments).into_lua_multi(&self.lua)?)
    }

    /// Thaws what a snapshot froze: the clock's origin, and the seed that Luau began with.
    fn thaw(&self, seed: u64) -> mlua::Result<()> {
        sandbox::restart_clock();
        // `math.randomseed` takes 32 bits.
        self.every.seed.call(((seed ^ (seed >> 32)) as u32).cast_signed())
    }

    /// Makes the first task, of a thread, what it does, and what its end means.
    fn begin<R: FromLuaMulti + 'static>(
        &self,
        request: u32,
        thread: Thread,
        body: AsyncThread<R>,
        end: fn(&Lua, R) -> Result<Finish, Finish>,
    ) {
        let (lua, threads, ends) = (self.lua.clone(), self.threads.clone(), self.ends.clone());
        let first = move |id| async move {
            let failed = |message: String| Err(Finish::Failed(failure::from_message(message)));
            let end = match scheduler::run_first(&lua, id, body).await {
                Ok(Some(returned)) => {
                    threads.give_back(&lua, thread);
                    end(&lua, returned)
                }
                Ok(None) => failed("the script was cancelled".to_owned()),
                Err(error) => failed(failure::describe_error(&error)),
            };
            // A failed handler ends the request; a successful one lets its tasks come to their ends.
            if end.is_err() {
                cancel::cancel_where(request, |ownership| ownership != Ownership::Detached);
            }
            scheduler::others_ended(request).await;
            ends.borrow_mut().push_back((request, end.unwrap_or_else(|failure| failure)));
        };
        // A host that gives a number twice ends the request that had it.
        scheduler::close(request);
        operation::close(request);
        scheduler::open(request, first, self.every.run_cleanups.clone());
    }

    /// Whether a message of so many bytes can be taken in, if need be after the script's garbage is collected.
    pub fn has_room(&self, length: usize) -> bool {
        // Once for the message, once for what is read from it.
        memory::reserve(&self.lua, length.saturating_mul(2)).is_ok()
    }

    /// Takes finished operations and runs until all tasks wait again. Gives how many do.
    pub fn complete(&mut self, bytes: &[u8]) -> usize {
        // The host and the guest are built together: bytes that cannot be read are nobody's completions.
        scheduler::deliver(wire::decode(bytes).unwrap_or_default());
        self.run()
    }

    fn run(&mut self) -> usize {
        loop {
            scheduler::run_until_parked();
            let any_goes_on = self.finish();
            self.close_ended();
            // What was detached begins when the host calls again, with a budget of its own.
            if any_goes_on || !scheduler::any_open() || operation::any_pending() {
                break;
            }
            // Beside others nobody knows that nothing will wake a task: a request that is still to come may.
            if !scheduler::is_open_for(ALONE) {
                break;
            }
            self.break_deadlock();
        }
        scheduler::n_alive()
    }

    /// Hands over the ends that are there. Whether tasks of any of these requests go on.
    fn finish(&mut self) -> bool {
        let mut any_goes_on = false;
        while let Some((request, finish)) = self.next_end() {
            self.log_unawaited(request);
            let n_left = scheduler::n_alive_of(request);
            host::finish(request, n_left, &finish);
            if n_left > 0 {
                self.outlived.insert(request);
                any_goes_on = true;
            }
            scheduler::begin_detached(request);
        }
        any_goes_on
    }

    fn next_end(&self) -> Option<(u32, Finish)> {
        self.ends.borrow_mut().pop_front()
    }

    /// Forgets the requests whose tasks have all ended.
    fn close_ended(&mut self) {
        while let Some(request) = scheduler::next_ended() {
            self.close(request);
        }
    }

    /// Tasks that wait for each other for ever get an error, the first one; or else they are cancelled.
    fn break_deadlock(&mut self) {
        if scheduler::first_of(ALONE).is_some_and(wait::refuse_deadlock) {
            return;
        }
        let n = scheduler::n_alive();
        cancel::cancel_where(ALONE, |_| true);
        let any_left = scheduler::can_run();
        let text = format!("{n} tasks waited for each other, with nothing to wake them; they were cancelled");
        host::log(ALONE, Level::Error, text.as_bytes());
        if !any_left {
            // Not reached as long as what is cancelled wakes. A VM that hangs would be worse than one that ends.
            host::finish(ALONE, 0, &Finish::Failed(failure::from_message("all tasks waited for each other")));
            self.close(ALONE);
        }
    }

    /// Drops what is left of a request, and stops its operations.
    fn close(&mut self, request: u32) {
        self.log_unawaited(request);
        // The Luau side keeps what it knows of each task until it is told of the task's end.
        for task in scheduler::cancelled_unbegun(request) {
            let _ = self.call_prelude("look_at", task);
        }
        scheduler::close(request);
        operation::close(request);
        #[cfg(test)]
        crate::tests::programs::witness_close();
        if self.outlived.remove(&request) {
            host::over(request);
        }
    }

    fn log_unawaited(&self, request: u32) {
        if !scheduler::any_failed(request) {
            return;
        }
        let Ok((failures, more)) = self.every.take_unawaited.call::<(Vec<Value>, u32)>(request) else { return };
        scheduler::forget_failures(request);
        for value in &failures {
            let ScriptError { message, traceback } = failure::script_error(&self.lua, value);
            let text = format!("a task failed, and none awaited it: {message}\n{traceback}");
            host::log(request, Level::Error, text.as_bytes());
        }
        if more > 0 {
            host::log(request, Level::Error, format!("{more} more tasks failed").as_bytes());
        }
    }
}

impl Every {
    fn find(lua: &Lua, prelude: &Table) -> mlua::Result<Self> {
        Ok(Self {
            run_cleanups: prelude.raw_get("run_cleanups")?,
            take_unawaited: prelude.raw_get("take_unawaited")?,
            seed: lua.globals().get::<Table>("math")?.raw_get("randomseed")?,
            request: request::template(lua)?,
        })
    }
}

impl Kind {
    /// The end of a first task that returned `value`, or failed with it.
    fn end(self, lua: &Lua, ok: bool, value: &Value) -> Result<Finish, Finish> {
        if ok { self.success(lua, value) } else { Err(self.failure(lua, value)) }
    }

    /// The end of a first task that returned `value`.
    fn success(self, lua: &Lua, value: &Value) -> Result<Finish, Finish> {
        match self {
            Self::Request => request::response(lua, value)
                .map(Finish::Response)
                .map_err(|rule| Finish::Failed(failure::from_message(rule))),
            Self::Run => Ok(Finish::Done),
            Self::Work => match stdlib::workers::pack_results(lua, value) {
                Ok(results) => Ok(Finish::Worked(Ok(results))),
                Err(failure) => Err(Finish::Worked(Err(failure.into_operation_error()))),
            },
        }
    }

    /// The end of a first task that failed.
    fn failure(self, lua: &Lua, failure: &Value) -> Finish {
        match self {
            Self::Request | Self::Run => Finish::Failed(failure::script_error(lua, failure)),
            Self::Work => Finish::Worked(Err(failure::worker_error(lua, failure))),
        }
    }
}
