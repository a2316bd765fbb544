"""What to do about rows that are not written, by their reason in the ledgers."""

_MANIFEST = "correct these lines of the manifest, or leave them out: they become dead letters"
_FILE = "fetch or encode these files again, or leave the rows out: they become dead letters"

_REMEDIES = {
  "bad_captions": "captions are a text or a list of texts; map other columns with --column caption=COLUMN",
  "bad_crop": "crop is [top, bottom, left, right] in fractions of the height and width",
  "bad_label": "labels are class numbers; for names add --column class=label --class_names=FILE, one name per line",
  "bad_split": "--split_name THEIRS=train or =validation",
  "bad_uri": "--column uri=COLUMN or --uri_template; rows without a file become dead letters",
  "not_allowed": "--media_root, or --allow_uri=PREFIX for files elsewhere, then --retry_dead if the job has run",
  "bad_window": "start_seconds and end_seconds are seconds, the end after the start",
  "bad_modality": "modality is image or video, or left out: the extension decides",
  "bad_source_row": "correct the table, tar file or class list at this place; the rest of the file is read",
  "duplicate": "nothing: the first of these rows is written",
  "no_caption": "--column caption=COLUMN names the captions, or NAME.txt next to NAME.mp4 in a folder; --no_text "
  "and --content=pixels need none",
  "too_small": "--allow_upscale enlarges them; or a smaller --resolutions",
  "too_short": "fewer --num_frames, or a higher --fps: the clip is num_frames / fps seconds long",
  "low_frame_rate": "a lower --fps; files with fewer frames per second would be repeated",
  "interlaced": "--deinterlace accepts and deinterlaces them",
  "low_motion": "a lower --min_motion accepts them",
  "no_more_clips": "fewer --clips_per_video; these videos have fewer different clips",
  "missing": "--media_root, --uri_template or --column uri=COLUMN, if the files exist elsewhere; else fetch them",
  "stale_member": "the tar file changed while it was read: run again",
  "too_large": "--max_bytes or --max_pixels",
  "too_long": "--max_seconds",
  "too_many_frames": "--max_decoded_frames, or --clip_position=beginning",
  "decode_timeout": "--decode_timeout, or fewer --decode_threads",
  "out_of_memory": "--decode_memory_mib",
  "not_media": "these files are another kind of data, such as an HTML page: fetch them again",
  "empty": "the files have no bytes: fetch them again",
  "truncated": "the files end early: fetch them again",
  "no_video_stream": "the files have sound only; leave the rows out",
  "hdr": "convert them to BT.709, for example with ffmpeg's filters zscale and tonemap (docs/sources.md)",
  "heic": "convert them to JPEG or PNG, for example with heif-convert",
  "jpeg_xl": "convert them to JPEG or PNG, for example with djxl",
  "unknown_range": "convert float images to 8 or 16 bits",
  "hidden": "nothing: names that begin with a dot are not read",
  "other_extension": "rename or convert the files if they are media; --manifest=FILE reads one that is a manifest",
  "listed_but_missing": "fetch these files, or use the list of this copy",
}


def remedy(stage: str, reason: str) -> str:
  """What a user can do about a `loading.Failure` of this stage and reason."""
  if reason in _REMEDIES:
    return _REMEDIES[reason]
  if stage == "manifest":
    return _MANIFEST
  if stage == "filter":
    return "change or remove this --filter if it rejects too much"
  return _FILE
