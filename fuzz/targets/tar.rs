//! A tar archive, such as `.nemo` files are: members lie inside of it, each by itself.

use lora_tool::container::tar;
use lora_tool::layout;

use super::support::{self, Place};

pub fn one(data: &[u8]) {
    if let Ok(members) = tar::members(data) {
        let mut places: Vec<_> = members.values().cloned().collect();
        places.sort_by_key(|place| (place.start, place.end));
        assert!(places.iter().all(|place| place.start <= place.end && place.end <= data.len()));
        assert!(places.windows(2).all(|pair| pair[0].end <= pair[1].start), "members overlap: {places:?}");
        for name in members.keys() {
            assert!(!name.starts_with('/') && name.split('/').all(|part| part != ".."), "{name}");
        }
    }
    let place = Place::new();
    if let Ok(opened) = layout::open(&place.put("adapter.nemo", data), None) {
        support::look_at(&opened);
    }
}
