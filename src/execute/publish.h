// From staged files to a checkpoint: claiming a target folder, publishing file by file with the marker last, receipts.
//
//   <target>/.reshard/owner                  who works on it, whatever the plan: host, pid, boot id (execute/owner.h)
//   <target>/.reshard/<plan id>/files/...    the staged files
//   <target>/.reshard/<plan id>/journal      what of them is done (execute/journals.h); of tasks, one each beside it
//   <target>/.reshard/<plan id>/task.<k>-of-<n>/owner  a task that fills its share
//   <target>/.reshard/<plan id>/progress.<k>-of-<n>    JSON, written now and then: how far a run is (api/progress.h)
//   <target>/.reshard/<plan id>/request      JSON: the options and sources of the plan, to say what changed
//   <target>/.reshard/<plan id>/executed     JSON, written when all of them are complete and synced
//   <target>/.reshard/<plan id>/publishing   JSON, written before the first rename: what is to be published
//   <target>/.reshard/<plan id>/old/...      what --override moved out of the way
//   <target>/.reshard.json                   the receipt: has "plan_id", and "files" with a "path", "size" and "xxh3"
//   each
//
// Of a target that is one file the names are those of base/target_place.h, and its one rename publishes it.
//
// At every instant the target is the old checkpoint, or has no marker and the next run rolls it forward, or is the new
// one; that is so after SIGKILL and power loss at any point.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/io.h"
#include "base/json.h"
#include "base/target_place.h"
#include "execute/shares.h"

namespace reshard {

struct Target {
  TargetPlace place;  // its folder is made if it is not there
  std::string plan_id;
  std::vector<std::string> files;  // relative paths in the order of publication: the marker last
  bool replace = false;            // --override
  // Names, at the top of the target or below it, that a loader could take for a marker of any kind: under `replace`,
  // old entries that contain one are moved away first.
  std::vector<std::string> markers;
  Json request;  // two objects, "options" and "sources", whose entries tell two plans apart
  // What to do where it holds something and not `replace`; the end of the message.
  std::string remedy = "choose another one, or replace what is there with --override";
};

// A claimed target. Destruction releases the claim and leaves the folder as it is.
class Stage {
 public:
  virtual ~Stage() = default;

  // The folder for the staged files; it exists. What an earlier run of the same plan left there the journal knows.
  virtual const std::string& folder() const = 0;

  // What MarkExecuted of an earlier run of the same plan was given, if all staged files are still there in their sizes:
  // the data needs not be moved again (a cast that overflowed, then --allow_overflow) if its hashes are right too.
  virtual const std::optional<Json>& executed() const = 0;
  virtual void MarkExecuted(const Json& record) = 0;

  // The publication steps of the design: record, move old entries away, rename new ones (marker last), sync folders,
  // write the receipt, delete the staging folder and old/.
  virtual void Publish(const Json& receipt) = 0;

  // Deletes the staged files, and the target folder too if this claim made it and it is otherwise empty.
  virtual void Discard() = 0;
};

// A task's place in a claimed target: others of the same plan have theirs. Destruction gives it up and leaves the
// folder as it is.
class Seat {
 public:
  virtual ~Seat() = default;
  virtual const std::string& folder() const = 0;  // for the staged files
};

// Where the journal of the target's plan is, and how far a run of it has come.
std::string JournalOf(const Target& target);
std::string ProgressOf(const Target& target, TaskOf task);

// Whether there is something to do, as far as can be told without touching anything: false where Claim would say
// "already complete". Errors are Claim's. Of a folder that a run has worked on only what others have staged is looked
// at: what else lies there may be its own, and only Claim can tell.
bool CheckTarget(Io& io, const Target& target);

// What runs with other options or sources have staged in the target, and nobody has begun to publish: a text each that
// says what changed. A claim is refused because of it, or deletes it under `replace`.
std::vector<std::string> OthersStaged(Io& io, const Target& target);

// Claims the target for this plan. Before that, a publication that an earlier run began (its `publishing` record is
// there) and no live run is at is rolled forward to its end. Then:
//   * the target has a receipt of this very plan id and its files are there with the receipt's sizes: returns nullptr,
//     "already complete";
//   * it holds any entry other than `conversion-logs`, `.reshard`, `.reshard.json` and not `replace`: kAlreadyExists,
//     names the entry and --override;
//   * its folder is none, or its `.reshard` is not a folder or is reached through a link: kAlreadyExists;
//   * another live run owns the target, or a task has its seat there: kAlreadyExists, with host and pid. An owner that
//   is dead (same host and boot:
//     no such process; same host, another boot; elsewhere: no heartbeat for 60 s) is taken over;
//   * another plan has staged data and not `replace`: kMismatch, says what changed and names --override;
//   * the staging folders of other plans are deleted, that of this plan stays; anything else in `.reshard` is not ours,
//     and stays, too.
// A target folder that was made is gone again where claiming it fails.
std::unique_ptr<Stage> Claim(Io& io, const Target& target);

// Takes the seat of one of several tasks, after what Claim does; nullptr where it returns that. Live tasks of the same
// plan, as many of them, are no obstacle; a live owner and any other task are. Only a claim can publish or discard.
std::unique_ptr<Seat> Join(Io& io, const Target& target, TaskOf task);

// Rolls a publication that was begun in the folder forward to its end, as Claim does; false where none was begun.
bool FinishPublication(Io& io, const TargetPlace& place);

// Takes the receipt away, so that what the folder holds is no longer complete to anyone; no error if there is none.
void ForgetReceipt(Io& io, const TargetPlace& place);

// The receipt of a checkpoint, if it has one. kCorrupt where it is not readable as one: "plan_id", and "files"
// with "path", "size" and "xxh3" each, are there.
std::optional<Json> ReadReceipt(Io& io, const TargetPlace& place);

}  // namespace reshard
