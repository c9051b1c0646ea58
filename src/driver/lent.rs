//! Memory lent to the kernel. While an operation that names it is in flight it may not be touched,
//! moved or freed; if the loop dies in that moment it is leaked instead of freed, because the kernel
//! may still write to it.

use std::mem::ManuallyDrop;

/// A boxed value whose address the kernel may know.
#[derive(Debug)]
pub(crate) struct Lent<T> {
    value: ManuallyDrop<Box<T>>,
    lent: bool,
}

impl<T> Lent<T> {
    /// Boxes `value`, which stays at one address from now on.
    pub(crate) fn new(value: T) -> Self {
        Self {
            value: ManuallyDrop::new(Box::new(value)),
            lent: false,
        }
    }

    /// The kernel has it.
    pub(crate) fn is_lent(&self) -> bool {
        self.lent
    }

    /// Marks it as lent and gives access for the last time before [`Self::give_back`]: to fill in
    /// what the kernel will read and to take the addresses.
    pub(crate) fn lend(&mut self) -> &mut T {
        assert!(!self.lent, "memory was lent to the kernel twice");
        self.lent = true;
        &mut self.value
    }

    /// The operation that named it has completed.
    pub(crate) fn give_back(&mut self) {
        self.lent = false;
    }

    /// The value, which the kernel must not have.
    pub(crate) fn get(&self) -> &T {
        assert!(!self.lent, "memory lent to the kernel was looked at");
        &self.value
    }

    /// The value, which the kernel must not have.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        assert!(!self.lent, "memory lent to the kernel was touched");
        &mut self.value
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        if !self.lent {
            // SAFETY: dropped here and nowhere else; `self` is not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.value) }
        }
    }
}
