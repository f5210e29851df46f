//! The guest: a Luau VM that runs one tenant's script behind WebAssembly's wall.
//!
//! The host calls the exports below; [`host`] has what the guest may call in return. A script's call
//! to a module becomes an operation: its coroutine yields, the host performs the operation, and the
//! coroutine resumes. Every export returns as soon as all tasks wait, so a waiting VM holds no stack.
//!
//! # Layout, in reading order
//!
//! | module | responsible for |
//! |---|---|
//! | [`host`] | the imports, and nothing else that leaves the guest |
//! | [`interrupt`] | how the host takes the thread back |
//! | [`operation`] | operations on their way: submit, wait, cancel, at most so many at once |
//! | [`scheduler`] | tasks: who runs, who waits for whom, when all have ended |
//! | [`failure`] | errors: as a script catches them, and as the log shows them |
//! | [`stdlib`] | the modules that a script may `require`, one file each |
//! | [`module`] | `require`, and the tenant's own modules |
//! | [`survey`] | what a script spells out, for a check that runs nothing |
//! | [`sandbox`] | what a script may see |
//! | [`plain`] | data of ours as a script's values |
//! | [`value`] | values on their way to another VM and from it |
//! | [`request`] | a request as a table, and the handler's answer |
//! | [`threads`] | what a request's first task runs on |
//! | [`vm`] | one VM from birth to its answer; the exports call it |
//! | [`memory`], `allocator` | the heap, and what to do when it is full |
//! | `compare` | how C compares bytes |
//! | `conformance` | the test profile, in a build of its own |

#[cfg(target_arch = "wasm32")]
mod allocator;
mod caller;
#[cfg(target_arch = "wasm32")]
mod compare;
#[cfg(feature = "conformance")]
mod conformance;
mod failure;
mod host;
mod interrupt;
mod limits;
mod memory;
mod module;
mod operation;
mod plain;
mod request;
mod sandbox;
mod scheduler;
mod seal;
mod stdlib;
mod survey;
#[cfg(test)]
mod tests;
mod threads;
mod value;
mod vm;

mod exports {
    //! What the host calls. Where it has a message, it says how many bytes there are to fetch.

    use std::cell::RefCell;

    use neoc_abi::log::Level;

    use crate::vm::Vm;
    use crate::{host, scheduler};

    thread_local! {
        static VM: RefCell<Option<Vm>> = const { RefCell::new(None) };
    }

    fn with_vm<T>(work: impl FnOnce(&mut Vm) -> T) -> T {
        VM.with_borrow_mut(|vm| work(vm.as_mut().expect("the host calls init before anything else")))
    }

    /// What `start` and `complete` say if the VM has no room for the message.
    const NO_ROOM: i32 = -1;

    /// Fetches a message and does its work, which gives how many tasks wait then. `room`: only if there is room for so
    /// many bytes and for what is made of them. A host that does not ask, with 0, risks the end of the instance.
    fn receive(length: usize, room: usize, work: impl FnOnce(&mut Vm, &[u8]) -> usize) -> i32 {
        with_vm(|vm| {
            if room > 0 && !vm.has_room(room) {
                return NO_ROOM;
            }
            i32::try_from(work(vm, &host::receive(length))).unwrap_or(i32::MAX)
        })
    }

    /// Where the stack ends: it lies first in memory, and what is in it between two calls means nothing.
    #[unsafe(no_mangle)]
    extern "C" fn stack_end() -> *const u8 {
        unsafe extern "C" {
            /// The linker's name for the first byte behind the stack.
            static __global_base: u8;
        }
        &raw const __global_base
    }

    /// Where the host writes the next function's result to have it called at the script's next loop or
    /// call. 0 before `init`.
    #[unsafe(no_mangle)]
    extern "C" fn interrupt_offset() -> *const () {
        VM.with_borrow(|vm| vm.as_ref().map_or(std::ptr::null(), Vm::interrupt_place))
    }

    /// The function that pauses the VM.
    #[unsafe(no_mangle)]
    extern "C" fn interrupt_function() -> usize {
        #[cfg(feature = "conformance")]
        return crate::conformance::interrupt_function() as usize;
        #[cfg(not(feature = "conformance"))]
        return crate::interrupt::function() as usize;
    }

    /// Makes the VM. Runs once, perhaps long before the rest: a snapshot is taken after it.
    #[unsafe(no_mangle)]
    extern "C" fn init() {
        // A panic is a trap of this instance. Its message goes to the log; there is no standard error.
        std::panic::set_hook(Box::new(|panic| {
            host::log(scheduler::request(), Level::Error, panic.to_string().as_bytes())
        }));
        VM.set(Some(Vm::new().expect("the VM is made of fixed parts, without a memory limit")));
    }

    /// Loads a tenant's [`neoc_abi::event::Bundle`].
    #[unsafe(no_mangle)]
    extern "C" fn load(length: usize) {
        with_vm(|vm| vm.load(&host::receive(length)));
    }

    /// Starts the work of a [`neoc_abi::event::Start`]. Gives how many tasks wait; 0: all have ended.
    #[unsafe(no_mangle)]
    extern "C" fn start(length: usize, room: usize) -> i32 {
        receive(length, room, Vm::start)
    }

    /// Ends a request of those that this VM has at once: cancels its tasks and runs on until all wait. Gives how many
    /// do; how it ended comes as ever.
    #[unsafe(no_mangle)]
    extern "C" fn cancel_request(request: u32) -> usize {
        with_vm(|vm| vm.cancel_request(request))
    }

    /// Takes a batch of [`neoc_abi::Completion`]s and runs on until all tasks wait again. Gives how many do.
    #[unsafe(no_mangle)]
    extern "C" fn complete(length: usize, room: usize) -> i32 {
        receive(length, room, Vm::complete)
    }
}
