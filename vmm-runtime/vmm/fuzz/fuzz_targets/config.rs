//! Reading and checking of configurations: no input panics, and what is valid survives being written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use paddock_vmm::config::VmConfig;

fuzz_target!(|text: &[u8]| {
    let Ok(config) = VmConfig::from_json(text) else { return };
    let Ok(valid) = config.clone().validate() else { return };
    let again = serde_json::to_vec(&config).expect("a configuration can be written");
    let again = VmConfig::from_json(&again).expect("and read again");
    assert_eq!(again, config);
    assert_eq!(again.validate().as_ref(), Ok(&valid));
    for disk in valid.disks() {
        assert!(!disk.name().is_empty());
    }
});
