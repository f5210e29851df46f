//! VMs for the next request, made as new after the one before.
//!
//! To make an instance and to end one costs as much as a small request: wasmtime's store, its tables, a reference for
//! each function that is called through them. None of that differs from one VM to the next. So a VM whose request is
//! over is made as new where it is, and waits here.
//!
//! # Why nobody can tell it from a fresh one
//!
//! What a guest can ever change is
//!
//! 1. its memory, which is put back as when a VM is gone, see [`super::memory`];
//! 2. its mutable globals, which are set to what they were when the VM was fresh;
//! 3. nothing else of its instance: a guest whose code could change a table or drop a segment is no base image, see
//!    [`super::image`]. The code is checked, so this holds for a guest that was taken over, too;
//! 4. its stack, which is zeroed, and of which nothing is left: every call into the VM has returned;
//! 5. exceptions, which only wasmtime can look into. No reference to one outlives the calls;
//! 6. what the host keeps for it, all of which is dropped: requests, limits, clocks, meters.
//!
//! A VM is ended instead if a call into it has trapped, was killed or never returned, if its memory has grown, which
//! cannot be undone, and after some hundred requests.
//!
//! As new it is with the script of the tenant that had it last, which is what the next VM of that tenant begins with. A
//! tenant of another script is given it without: the lines that the script had changed are put back first.
//!
//! # Requests that wait
//!
//! By the same argument a request between two calls is what it has changed in the memory, the globals, and what the host
//! keeps for it. So while it waits it has no VM: its lines are taken out as the VM is made as new, and it goes on in
//! whichever VM is there ([`super::vm::Vm::park`]). The next request has the one that it left, whose memory is in the
//! processor's caches; a VM that waits for 50 ms is not in them any more, and to go on in it and to put it back takes
//! longer than all that the guest has to do. A request whose memory has grown, or has much in it, keeps its VM.

use parking_lot::Mutex;

use super::{tenant_image::SharedImage, vm::Vm};

/// Most that wait here. Requests that wait for the same thing come to their ends together.
const MAX_WAITING: usize = 256;

/// Of so many it is looked whether they have the script that is asked for.
const MAX_LOOKED_AT: usize = 8;

/// VMs that are as new, each with the script in it that it had last.
#[derive(Default)]
pub struct Renewed {
    /// The last that came is the next to go: its pages are in the processor's caches.
    #[allow(clippy::vec_box, reason = "each comes and goes in its box")]
    vms: Mutex<Vec<Box<Vm>>>,
}

// === impl Renewed ===

impl Renewed {
    /// Takes one; of a few of the last, one that has the script of `image` already, if there is any.
    pub fn take(&self, image: &SharedImage) -> Option<Box<Vm>> {
        let mut vms = self.vms.lock();
        // No more: the longer one waits, the less of it is in the caches.
        let index = vms.iter().rev().take(MAX_LOOKED_AT).position(|vm| vm.has(image));
        match index.map(|from_last| vms.len() - 1 - from_last) {
            Some(index) => Some(vms.remove(index)),
            None => vms.pop(),
        }
    }

    /// Makes `vm` as new and keeps it, if that can be; else ends it. To be called in the poll of its request.
    pub fn keep(&self, vm: Box<Vm>) {
        if let Some(vm) = vm.renew() {
            self.put(vm);
        }
    }

    /// Keeps one that is as new.
    pub fn put(&self, vm: Box<Vm>) {
        // One too many is ended after the lock is free: what came as an argument is dropped last.
        let mut vms = self.vms.lock();
        if vms.len() < MAX_WAITING {
            vms.push(vm);
        }
    }
}
