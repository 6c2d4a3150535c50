"""What an index of very many images takes: made-up rows straight into the shards, as the scan leaves them, and no files.

PYTHONPATH=tests python -m benchmarks.index --instances 10000000 --out build/bench
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medssl.archive import Index
from medssl.archive.executors import HERE
from medssl.archive.headers.scan import scan_files
from medssl.archive.index.build import _read, add_tables
from medssl.archive.index.facts import LISTING, Facts
from medssl.archive.index.folder import Asked, IndexFolder, New
from medssl.archive.index.registry import Sources
from medssl.archive.index.scanning import Scan
from medssl.archive.instance import SCHEMA, to_table
from medssl.archive.sources.folder import FolderSource
from medssl.archive.tables import write_table
from medssl.files import make_folder
from medssl.testing.dicom import made_affine, made_volume, write_series

SLICES = 200
"""Images a series."""
SHARD = 4000


def template() -> pa.Table:
    """The rows of one CT series as the scan makes them."""
    with TemporaryDirectory() as folder:
        files = write_series(Path(folder), made_volume((8, 8, SLICES)), made_affine())
        return to_table([replace(one, size=524_288) for one in scan_files(FolderSource(folder), 0, sorted(file.name for file in files))])


def shard(rows: pa.Table, first: int, count: int) -> pa.Table:
    """The series from `first` on: three in a study, two studies a patient."""
    series = np.repeat(np.arange(first, first + count), SLICES).tolist()
    table = pa.concat_tables([rows] * count)
    slices = np.tile(np.arange(SLICES), count)
    texts = {
        "patient": [f"PID{one // 6:08d}" for one in series],
        "study": [f"1.2.826.0.1.3680043.8.498.{10**20 + one // 3}" for one in series],
        "series": [f"1.2.826.0.1.3680043.8.498.{10**24 + one}" for one in series],
        "uid": [f"1.2.826.0.1.3680043.8.498.{10**24 + one}.{z}" for one, z in zip(series, slices, strict=True)],
        "version": [str(1_700_000_000_000_000_000 + one * SLICES + z) for one, z in zip(series, slices, strict=True)],
    }
    keys = [f"{one // 6:08d}/{one // 3:08d}/{one:08d}/IM{z:06d}.dcm".encode() for one, z in zip(series, slices, strict=True)]
    for name, values in {**texts, "key": keys}.items():
        table = table.set_column(SCHEMA.get_field_index(name), name, pa.array(values, SCHEMA.field(name).type))
    return table


def fill(root: IndexFolder, new: New, instances: int) -> None:
    """Shards as the scan leaves them, and the listing of their files."""
    rows = template()
    make_folder(root.scan)
    with pq.ParquetWriter(new.work / "listing-named.parquet", LISTING) as listing:
        for number, first in enumerate(range(0, instances // SLICES, SHARD // SLICES)):
            table = shard(rows, first, min(SHARD // SLICES, instances // SLICES - first))
            write_table(table, root.scan / f"read-{_read()}-{number:08d}.parquet")
            places = pa.array(np.arange(len(table)) + number * SHARD)
            sure = pa.array(np.zeros(len(table), bool))
            listed = [table["source"], places, table["key"], table["size"], table["version"], sure]
            listing.write_table(pa.table(listed, schema=LISTING))


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def peak() -> float:
    """GB that this process and the largest of its workers had at most."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024 / 1e9


def cpu() -> float:
    """Processor seconds of this process and its workers."""
    return sum(one.ru_utime + one.ru_stime for one in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def measure(instances: int, folder: Path, workers: int) -> dict[str, float]:
    """One index."""
    found: dict[str, float] = {"instances": instances}
    with IndexFolder.held(folder) as root:
        with root.building() as new:
            fill(root, new, instances)
            found["scan shards, bytes an instance"] = size_of(root.scan) / instances
            asked = Asked(False, _read())
            scan = Scan(root, Facts(root, (), new.work), Sources(["made up"]), HERE, None, lambda content: content, "read")
            began, used = time.monotonic(), cpu()
            add_tables(scan, new, asked, workers)
            found["settling, CPU us an instance"] = (cpu() - used) / instances * 1e6
            found["settling, s"] = time.monotonic() - began
        scan.sources.write(root.sources)
        shutil.rmtree(root.scan)
    found["peak memory of a process, GB"] = peak()
    found["private part, bytes an instance"] = size_of(root.private) / instances
    found["public part, bytes an instance"] = (size_of(root.root) - size_of(root.private)) / instances
    for name, use in {"opening": lambda: Index(folder), "--where": lambda: Index(folder).volumes("modality = 'MR'")}.items():
        used = time.process_time()
        use()
        found[f"{name}, CPU s"] = time.process_time() - used
    index = Index(folder)
    names = index._table["volume"].slice(0, 200).to_pylist()
    index._slices(names[0])
    used = time.process_time()
    for name in names:
        index._slices(name)
    found["finding the slices of a volume, CPU ms"] = (time.process_time() - used) / len(names) * 1e3
    used = time.process_time()
    found["volumes"] = len(index.volumes())
    found["all volumes as records, CPU s"] = time.process_time() - used
    used = time.process_time()
    index.rejected()
    found["counts over all instances, CPU s"] = time.process_time() - used
    return found


def main() -> None:
    """Print and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        found = measure(given.instances, Path(folder) / "index", given.workers)
    for name, value in found.items():
        sys.stdout.write(f"{name:45} {value:.4g}\n")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "index.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
