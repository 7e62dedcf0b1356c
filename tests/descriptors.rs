//! Descriptors and results: both encodings, golden files of released formats, and any bytes at all.

use std::path::{Path, PathBuf};

use lance_tasks::codec::{encoding_of, kind_of};
use lance_tasks::{
    Call, Descriptor, ErrorCode, Executor, ExecutorOptions, Job, Spec, Task, TaskResult,
};
use proptest::prelude::*;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/format-1")
}

fn read(name: &str) -> Vec<u8> {
    let path = golden().join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

const OPERATIONS: &[&str] = &[
    "write",
    "open_write",
    "compact",
    "create_index",
    "create_vector_index",
    "optimize_index",
    "take_blobs",
];

/// Run once per released format, by hand: `LANCE_TASKS_WRITE_GOLDEN=1 cargo test --release golden`.
fn write_golden() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_str().unwrap().to_owned();
    let csv = format!("{root}/source.csv");
    std::fs::write(&csv, "a,b\n1,x\n2,y\n3,\n4,z\n").unwrap();
    let executor = Executor::new(ExecutorOptions::default()).unwrap();
    let call = Call::default();
    let uri = format!("{root}/example.lance");
    let spec = |text: String| Spec::decode(text.as_bytes()).unwrap();
    std::fs::create_dir_all(golden()).unwrap();
    // Stored under a place that means nothing.
    let put = |name: &str, bytes: Vec<u8>| std::fs::write(golden().join(name), bytes).unwrap();
    let elsewhere = |json: String| json.replace(&root, "/data");
    let keep = |name: &str, job: &Job, task: &Task| {
        let job = Job::decode(elsewhere(job.to_json().unwrap()).as_bytes()).unwrap();
        let task = Task::decode(elsewhere(task.to_json().unwrap()).as_bytes()).unwrap();
        put(&format!("{name}.job.bin"), job.to_bytes().unwrap());
        put(&format!("{name}.job.json"), job.to_json().unwrap().into_bytes());
        put(&format!("{name}.task.bin"), task.to_bytes().unwrap());
        put(&format!("{name}.task.json"), task.to_json().unwrap().into_bytes());
    };
    let write = spec(format!(
        r#"{{"operation":"write","uri":"{uri}","sources":["{csv}"],"max_rows_per_file":2}}"#
    ));
    let job = executor.prepare(write, None, &call).unwrap();
    let task = executor.plan(&job, &[], &call).unwrap().remove(0);
    keep("write", &job, &task);
    let mut result = executor.execute(&task, None, &call).unwrap();
    executor.commit(&job, std::slice::from_ref(&result), &call).unwrap();
    result.dataset_uri = "/data/example.lance".into();
    result.host = "host".into();
    put("result.arrow", TaskResult::to_ipc(std::slice::from_ref(&result)).unwrap());
    put("result.json", serde_json::to_vec_pretty(&result.to_json()).unwrap());

    let schema = std::sync::Arc::new(arrow_schema::Schema::new(vec![arrow_schema::Field::new(
        "a",
        arrow_schema::DataType::Int64,
        true,
    )]));
    let open = spec(format!(
        r#"{{"operation":"write","uri":"{root}/open.lance","partitions":["p0","p1"]}}"#
    ));
    let job = executor.prepare(open, Some(schema), &call).unwrap();
    keep("open_write", &job, &job.task("p1").unwrap());
    let on = |name: &str, uri: &str, rest: &str| {
        let text = format!(r#"{{"operation":"{name}","uri":"{uri}",{rest}}}"#);
        let job = executor.prepare(spec(text), None, &call).unwrap();
        let task = executor.plan(&job, &[], &call).unwrap().remove(0);
        (job, task)
    };
    for (name, rest) in [
        ("compact", r#""defer_index_remap":true,"micro_commit_batch_size":3"#),
        ("create_index", r#""column":"a","index_type":"BTREE","params":{"zone_size":512}"#),
    ] {
        let (job, task) = on(name, &uri, rest);
        keep(name, &job, &task);
        if name == "create_index" {
            let built = executor.execute(&task, None, &call).unwrap();
            executor.commit(&job, &[built], &call).unwrap();
        }
    }
    let (job, task) = on("optimize_index", &uri, r#""retrain":true,"num_segments":2"#);
    keep("optimize_index", &job, &task);
    let uri = write_vectors(&executor, &root);
    let (job, task) = on(
        "create_index",
        &uri,
        r#""column":"v","index_type":"IVF_FLAT","ivf_centroids":[[1,2.5],[3,4]]"#,
    );
    keep("create_vector_index", &job, &task);
    let uri = write_blobs(&executor, &root);
    let (job, task) = on(
        "take_blobs",
        &uri,
        r#""column":"film","indices":[1,0,1],"ranges":[null,{"offset":1,"size":2},null]"#,
    );
    keep("take_blobs", &job, &task);
}

/// A dataset of four vectors in two dimensions.
fn write_vectors(executor: &Executor, root: &str) -> String {
    use arrow_array::types::Float32Type;
    use arrow_array::{FixedSizeListArray, RecordBatch};
    let rows = (0..4).map(|i| Some([Some(i as f32), Some(1.0)]));
    let vectors = FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(rows, 2);
    let batch = RecordBatch::try_from_iter([("v", std::sync::Arc::new(vectors) as _)]).unwrap();
    write_batch(executor, &format!("{root}/vectors.lance"), batch, "stable")
}

/// A dataset of two blobs.
fn write_blobs(executor: &Executor, root: &str) -> String {
    use arrow_array::{LargeBinaryArray, RecordBatch};
    let blob = std::collections::HashMap::from([("lance-encoding:blob".into(), "true".into())]);
    let field = arrow_schema::Field::new("film", arrow_schema::DataType::LargeBinary, true)
        .with_metadata(blob);
    let schema = std::sync::Arc::new(arrow_schema::Schema::new(vec![field]));
    let films = std::sync::Arc::new(LargeBinaryArray::from_vec(vec![b"one", b"two"]));
    let batch = RecordBatch::try_new(schema, vec![films]).unwrap();
    write_batch(executor, &format!("{root}/blobs.lance"), batch, "2.1")
}

fn write_batch(
    executor: &Executor,
    uri: &str,
    batch: arrow_array::RecordBatch,
    version: &str,
) -> String {
    use arrow_array::RecordBatchIterator;
    let text = format!(
        r#"{{"operation":"write","uri":"{uri}","partitions":["p"],
            "data_storage_version":"{version}"}}"#
    );
    let (call, schema) = (Call::default(), batch.schema());
    let spec = Spec::decode(text.as_bytes()).unwrap();
    let job = executor.prepare(spec, Some(schema.clone()), &call).unwrap();
    let input = Box::new(RecordBatchIterator::new([Ok(batch)], schema));
    let result = executor.execute(&job.task("p").unwrap(), Some(input), &call).unwrap();
    executor.commit(&job, &[result], &call).unwrap();
    uri.to_owned()
}

#[test]
fn golden_files_stay_readable() {
    if std::env::var_os("LANCE_TASKS_WRITE_GOLDEN").is_some() {
        write_golden();
    }
    for name in OPERATIONS {
        let job = Job::decode(&read(&format!("{name}.job.bin"))).unwrap();
        assert_eq!(job, Job::decode(&read(&format!("{name}.job.json"))).unwrap(), "{name}");
        let task = Task::decode(&read(&format!("{name}.task.bin"))).unwrap();
        assert_eq!(task, Task::decode(&read(&format!("{name}.task.json"))).unwrap(), "{name}");
        assert_eq!(task.job_id, job.id);
    }
    let results = TaskResult::from_ipc(&read("result.arrow")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&read("result.json")).unwrap();
    assert_eq!(results[0].to_json(), json);
}

#[test]
fn both_encodings_come_back_equal() {
    for name in OPERATIONS {
        let job = Job::decode(&read(&format!("{name}.job.bin"))).unwrap();
        assert_eq!(Job::decode(&job.to_bytes().unwrap()).unwrap(), job);
        assert_eq!(Job::decode(job.to_json().unwrap().as_bytes()).unwrap(), job);
        assert_eq!(kind_of(&job.to_bytes().unwrap()).unwrap(), "job");
    }
    let text = r#"{"operation":"write","uri":"x","sources":["a.csv",{"uri":"b","format":"csv"}]}"#;
    let spec = Spec::decode(text.as_bytes()).unwrap();
    assert_eq!(Spec::decode(&spec.to_bytes().unwrap()).unwrap(), spec);
    assert_eq!(Spec::decode(spec.to_json().unwrap().as_bytes()).unwrap(), spec);
}

#[test]
fn what_is_wrong_with_bytes_is_said() {
    let job = read("compact.job.bin");
    let code = |bytes: &[u8]| Job::decode(bytes).unwrap_err().code();
    assert_eq!(code(b""), ErrorCode::Decode);
    assert_eq!(code(b"hello"), ErrorCode::Decode);
    assert_eq!(code(b"{"), ErrorCode::Decode);
    // Another kind, another format, another operation.
    assert_eq!(code(&read("compact.task.bin")), ErrorCode::InvalidArgument);
    let mut newer = job.clone();
    newer[4..6].copy_from_slice(&9u16.to_le_bytes());
    let error = Job::decode(&newer).unwrap_err();
    assert_eq!(error.code(), ErrorCode::VersionMismatch);
    assert!(error.message().contains("wire format 9"), "{error}");
    let error = Spec::decode(br#"{"operation":"dance","uri":"x"}"#).unwrap_err();
    assert!(error.message().contains("dance") && error.message().contains("compact"), "{error}");
    let error = Spec::decode(br#"{"operation":"compact","uri":"x","speed":9}"#).unwrap_err();
    assert!(error.message().contains("speed"), "{error}");
    // Cut short or damaged anywhere.
    for n in 0..job.len() {
        Job::decode(&job[..n]).unwrap_err();
        let mut damaged = job.clone();
        damaged[n] ^= 0x40;
        Job::decode(&damaged).unwrap_err();
    }
    let result = read("result.arrow");
    for n in 0..result.len() - 8 {
        // An IPC stream that ends after its schema is an empty one.
        if let Ok(results) = TaskResult::from_ipc(&result[..n]) {
            assert!(results.is_empty(), "{n} bytes");
        }
    }
}

#[test]
fn the_schema_knows_every_operation() {
    let schema = lance_tasks::schema::json_schema();
    let specs = schema["$defs"]["spec"]["oneOf"].as_array().unwrap();
    assert_eq!(specs.len(), lance_tasks::operations::NAMES.len());
    for spec in specs {
        let name = spec["$ref"].as_str().unwrap().rsplit('/').next().unwrap();
        assert!(schema["$defs"][name]["properties"]["operation"]["const"].is_string(), "{name}");
    }
}

/// Bytes that look like a descriptor: a real one with a few places changed and its checksum mended, so
/// that the payload's decoder is reached.
fn near(name: &'static str) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6).prop_map(
        move |changes| {
            let mut bytes = read(name);
            let header = 6 + bytes[6] as usize + 1;
            let mut at = header;
            for _ in 0..2 {
                at += bytes[at] as usize + 1;
            }
            let payload = at + 8 + 4;
            for (index, value) in changes {
                let place = payload + index.index(bytes.len() - payload);
                bytes[place] = value;
            }
            let mut crc = crc32fast::Hasher::new();
            crc.update(&bytes[..at + 8]);
            crc.update(&bytes[payload..]);
            bytes[at + 8..payload].copy_from_slice(&crc.finalize().to_le_bytes());
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_bytes_give_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = (Spec::decode(&bytes), Job::decode(&bytes), Task::decode(&bytes));
        let _ = (TaskResult::from_ipc(&bytes), encoding_of(&bytes), kind_of(&bytes));
        let mut magic = b"LTSK\x01\x00".to_vec();
        magic.extend_from_slice(&bytes);
        let _ = (Spec::decode(&magic), Job::decode(&magic), Task::decode(&magic));
    }

    #[test]
    fn damaged_payloads_give_a_value_or_an_error(job in near("write.job.bin"), task in near("create_index.task.bin")) {
        if let Ok(job) = Job::decode(&job) {
            prop_assert!(job.to_bytes().is_ok() && job.to_json().is_ok());
        }
        if let Ok(task) = Task::decode(&task) {
            prop_assert!(task.to_bytes().is_ok() && task.to_json().is_ok());
        }
    }

    #[test]
    fn any_json_gives_a_value_or_an_error(text in "[ -~]{0,120}") {
        let _ = Spec::decode(format!("{{{text}}}").as_bytes());
        let _ = Spec::decode(format!("{{\"operation\":\"write\",\"uri\":\"x\",{text}}}").as_bytes());
    }
}
