//! What a path parser lets through keeps its promises, for any text.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| lightd::fuzzing::path(text));
