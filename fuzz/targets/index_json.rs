//! The index of a sharded model, in a folder with two shards, and files beside them and outside that it may not name.

use lora_tool::container::Sharded;
use lora_tool::model::{BaseModel, INDEX_NAME};
use lora_tool::ops::inspect;

use super::support::{Place, file_of};

pub fn one(data: &[u8]) {
    let place = Place::new();
    let shard = |name: &str| file_of(&[(name, "F32", vec![1], vec![0; 4])]);
    place.put("outside.safetensors", &shard("secret"));
    place.put("model/inner/inside.safetensors", &shard("secret"));
    place.put("model/model-00001-of-00002.safetensors", &shard("a"));
    place.put("model/model-00002-of-00002.safetensors", &shard("b"));
    place.put(&format!("model/{INDEX_NAME}"), data);
    let folder = place.join("model");
    if let Ok(opened) = Sharded::open_indexed(&folder, INDEX_NAME) {
        for path in opened.paths() {
            assert_eq!(path.parent(), Some(folder.as_path()), "{}", path.display());
        }
        assert!(opened.tensors().all(|(_, name, _)| name != "secret"), "a file was read that lies elsewhere");
    }
    if let Ok(base) = BaseModel::open(&folder) {
        let _ = inspect::base::summarise(&base);
    }
}
