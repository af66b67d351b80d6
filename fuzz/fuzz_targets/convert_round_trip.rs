//! `targets/convert_round_trip.rs`, called by libFuzzer.

#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::convert_round_trip::one(data));
