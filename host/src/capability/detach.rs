//! Tasks that go on after the answer. The guest keeps them; what they may use then, the runtime sees to.

use neoc_abi::detach::Reply;

use crate::broker::detach::Permit;

/// Lets the guest begin one more.
pub fn perform(permit: Permit) -> Reply {
    let Permit { .. } = permit;
    Reply::Begun
}
