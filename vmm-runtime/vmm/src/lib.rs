//! One process per virtual machine.
