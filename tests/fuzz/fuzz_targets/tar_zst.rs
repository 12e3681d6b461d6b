//! Any bytes as a tar.zst: refused without a trace, or unpacked within the volume.
#![no_main]

libfuzzer_sys::fuzz_target!(|archive: &[u8]| lightd::fuzzing::unpack(archive));
