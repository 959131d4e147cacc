"""Completion of accelctl for bash, zsh and fish. What can be known beforehand is in the script; names are asked for.

Asked for are `accelctl models --names` and `accelctl toolbox list --names`, which answer without a daemon too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from accelerd.paper.tree import FILES, MODELS, NOTHING, TOOLBOXES, Node, Option, Word

MARK: Final = "accelerd: made by python -m accelerd.paper; installed and removed by packaging/install and uninstall"
NAMES: Final = {MODELS: "accelctl models --names", TOOLBOXES: "accelctl toolbox list --names"}


def quoted(text: str) -> str:
    """For sh, bash, zsh."""
    return "'" + text.replace("'", "'\\''") + "'"


def sources(value: Word) -> list[str]:
    """What the value is completed from, in one word each: =choice, models, files."""
    return [f"={choice}" for choice in value.choices] + [kind for kind in value.kinds if kind != NOTHING]


# --- bash -----------------------------------------------------------------------------------------------------

BASH: Final = r"""# bash completion for accelctl
# shellcheck disable=SC2046  # lists of words
# {mark}

# Values below: "=x" is the word x, the others name what is looked for. A path is what was typed before: "toolbox pin".
_accelctl_commands() {
  case $1 in
{commands}
  esac
}

_accelctl_options() {
  case $1 in
{options}
  esac
}

# _accelctl_value PATH OPTION: where the value of an option comes from; fails where it takes none.
_accelctl_value() {
  case "$1 $2" in
{values}
    *) return 1 ;;
  esac
}

# _accelctl_word PATH NUMBER: where the word in that place comes from.
_accelctl_word() {
  case "$1 $2" in
{words}
  esac
}

# _accelctl_offer WORD...: those that go on from $cur, into COMPREPLY.
_accelctl_offer() {
  local word
  for word; do [[ $word == "$cur"* ]] && COMPREPLY+=("$word"); done
}

_accelctl_look() {
  local source names
  for source; do
    case $source in
      =*) _accelctl_offer "${source#=}" ;;
      models) mapfile -t names < <(accelctl models --names 2>/dev/null) && _accelctl_offer "${names[@]}" ;;
      toolboxes) mapfile -t names < <(accelctl toolbox list --names 2>/dev/null) && _accelctl_offer "${names[@]}" ;;
      files)
        mapfile -t names < <(compgen -f -- "$cur")
        COMPREPLY+=("${names[@]}")
        compopt -o filenames 2>/dev/null
        ;;
    esac
  done
}

_accelctl() {
  local cur line words path="" number=0 skip="" word command prefix
  COMPREPLY=()
  # not COMP_WORDS: it takes the names of models apart at every colon
  line=${COMP_LINE:0:COMP_POINT}
  read -ra words <<<"$line"
  cur=""
  if [[ $line != *[[:space:]] ]]; then
    cur=${words[-1]}
    unset "words[-1]"
  fi
  for word in "${words[@]:1}"; do
    if [[ -n $skip ]]; then
      skip=""
    elif [[ $word == -* ]]; then
      if _accelctl_value "$path" "$word" >/dev/null; then skip=$word; fi
    else
      command=$(_accelctl_commands "$path")
      if [[ " $command " == *" $word "* ]]; then
        path=${path:+$path }$word
      else
        number=$((number + 1))
      fi
    fi
  done
  prefix=""
  if [[ -z $skip && $cur == --*=* ]]; then
    skip=${cur%%=*}
    prefix=$skip=
    cur=${cur#*=}
  fi
  if [[ -n $skip ]]; then
    _accelctl_look $(_accelctl_value "$path" "$skip")
  elif [[ $cur == -* ]]; then
    _accelctl_offer $(_accelctl_options "$path")
  else
    _accelctl_offer $(_accelctl_commands "$path")
    [[ -n $path ]] && _accelctl_look $(_accelctl_word "$path" "$number")
  fi
  # readline replaces only what follows the last of these
  if [[ -n $prefix && $COMP_WORDBREAKS != *=* ]]; then COMPREPLY=("${COMPREPLY[@]/#/$prefix}"); fi
  if [[ $cur == *:* && $COMP_WORDBREAKS == *:* ]]; then
    prefix=${cur%"${cur##*:}"}
    COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
  fi
}

complete -F _accelctl accelctl
"""


def bash(root: Node) -> str:
    """contrib/completions/accelctl.bash."""
    commands, options, values, words = [], [], [], []
    for node in root.walk():
        label = quoted(node.path)
        if node.children:
            commands.append(f"    {label}) echo {quoted(' '.join(c.name for c in node.children))} ;;")
        known = " ".join(name for option in node.options for name in option.names)
        options.append(f"    {label}) echo {quoted(known)} ;;")
        for option in node.options:
            if option.value:
                labels = " | ".join(quoted(f"{node.path} {name}") for name in option.names)
                values.append(f"    {labels}) echo {quoted(' '.join(sources(option.value)))} ;;")
        for number, (word, _) in enumerate(node.words):
            if found := " ".join(sources(word)):
                words.append(f"    {quoted(f'{node.path} {number}')}) echo {quoted(found)} ;;")
    text = BASH
    for key, lines in (("commands", commands), ("options", options), ("values", values), ("words", words)):
        text = text.replace("{" + key + "}", "\n".join(lines))
    return text.replace("{mark}", MARK)


# --- zsh ------------------------------------------------------------------------------------------------------

ZSH: Final = r"""#compdef accelctl
# {mark}

_accelctl_names() {
  local -a found expl
  found=(${(f)"$("$@" 2>/dev/null)"})
  _wanted names expl name compadd -a found
}
_accelctl_models() { _accelctl_names accelctl models --names }
_accelctl_toolboxes() { _accelctl_names accelctl toolbox list --names }
_accelctl_models_or_files() {
  _alternative 'models:model:_accelctl_models' 'files:file:_files'
}

{functions}
_accelctl "$@"
"""


def zsh(root: Node) -> str:
    """contrib/completions/_accelctl."""
    functions = "\n".join(zsh_function(node) for node in root.walk())
    return ZSH.replace("{functions}", functions).replace("{mark}", MARK)


def zsh_function(node: Node) -> str:
    name = zsh_name(node.path)
    specs = [spec for option in node.options for spec in zsh_option(option, node.options)]
    for word, text in node.words:
        place = "*" if word.many else (":" if word.optional else "")
        kind = zsh_action(word)
        shown = zsh_text(text or word.metavar.lower())
        specs.append(quoted(f"{place}:{shown}:{kind}"))
    if not node.children:
        body = ["  _arguments -s \\", *(f"    {spec} \\" for spec in specs)]
        return "\n".join([f"{name}() {{", *body])[:-2] + "\n}\n"
    specs += ["': :->command'", "'*:: :->rest'"]
    lines = [f"{name}() {{", '  local context state state_descr line curcontext="$curcontext"', "  typeset -A opt_args"]
    lines += ["  _arguments -C -s \\", *(f"    {spec} \\" for spec in specs)]
    lines[-1] = lines[-1][:-2] + " && return"
    lines += ["  case $state in", "    command)", "      local -a commands", "      commands=("]
    lines += [f"        {quoted(child.name + ':' + child.help.replace(':', chr(92) + ':'))}" for child in node.children]
    lines += ["      )", "      _describe command commands", "      ;;", "    rest)", "      case $words[1] in"]
    lines += [f"        {child.name}) {zsh_name(child.path)} ;;" for child in node.children]
    return "\n".join([*lines, "      esac", "      ;;", "  esac", "}", ""])


def zsh_name(path: str) -> str:
    return "_accelctl" + "".join(f"__{part}" for part in path.split())


def zsh_option(option: Option, among: Iterable[Option]) -> list[str]:
    rivals = [o for o in among if o is option or (option.group and o.group == option.group)]
    excluded = " ".join(name for rival in rivals for name in rival.names)
    made = []
    for name in option.names:
        value = ""
        if option.value:
            long = name.startswith("--")
            name += "=" if long else "+"
            value = f":{zsh_text(option.value.metavar)}:{zsh_action(option.value)}"
        made.append(quoted(f"({excluded}){name}[{zsh_text(option.help)}]{value}"))
    return made


def zsh_action(word: Word) -> str:
    if word.choices:
        return f"({' '.join(word.choices)})"
    if MODELS in word.kinds and FILES in word.kinds:
        return "_accelctl_models_or_files"
    return {MODELS: "_accelctl_models", TOOLBOXES: "_accelctl_toolboxes", FILES: "_files"}.get(word.kinds[0], " ")


def zsh_text(text: str) -> str:
    """Text that _arguments reads: colons and brackets mean something there."""
    return text.replace("\\", "\\\\").replace(":", "\\:").replace("[", "\\[").replace("]", "\\]")


# --- fish -----------------------------------------------------------------------------------------------------

FISH: Final = r"""# fish completion for accelctl
# {mark}

# What was typed before the word at the cursor: the commands as a path, "toolbox pin", and on a second line how many
# words that are no options follow them.
function __accelctl_typed
    set -l path
    set -l count 0
    set -l skip 0
    for word in (commandline -opc)[2..-1]
        if test $skip = 1
            set skip 0
            continue
        end
        switch "$path $word"
            case {values}
                set skip 1
            case {commands}
                set -a path $word
            case '* -*'
            case '*'
                set count (math $count + 1)
        end
    end
    echo "$path"
    echo $count
end

function __accelctl_at
    set -l typed (__accelctl_typed); and test "$typed[1]" = "$argv"
end

# Do so many words that are no options, the first argument, follow the commands, the others?
function __accelctl_word
    set -l wanted $argv[1]
    set -e argv[1]
    set -l typed (__accelctl_typed); and test "$typed[1]" = "$argv"; and test $typed[2] = $wanted
end

complete -c accelctl -f
{completions}
"""


def fish(root: Node) -> str:
    """contrib/completions/accelctl.fish."""
    values, commands, lines = [], [], []
    for node in root.walk():
        at = f"-n {fish_quoted('__accelctl_at ' + node.path if node.path else '__accelctl_at')}"
        for child in node.children:
            commands.append(fish_quoted(f"{node.path} {child.name}"))
            lines.append(f"complete -c accelctl {at} -a {child.name} -d {fish_quoted(child.help)}")
        for option in node.options:
            flags = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in option.names)
            if option.value:
                values += [fish_quoted(f"{node.path} {name}") for name in option.names]
                flags += " " + fish_source(option.value, "-x", "-r -F")
            lines.append(f"complete -c accelctl {at} {flags} -d {fish_quoted(option.help)}".replace("  ", " "))
        for number, (word, _) in enumerate(node.words):
            source = fish_source(word, "", "-F")
            if source:
                place = f"-n {fish_quoted(f'__accelctl_word {number} {node.path}')}"
                lines.append(f"complete -c accelctl {place} {source}")
    text = FISH.replace("{completions}", "\n".join(lines)).replace("{mark}", MARK)
    return text.replace("{values}", " ".join(values)).replace("{commands}", " ".join(commands))


def fish_source(word: Word, alone: str, files: str) -> str:
    """The options of fish's `complete` for a value."""
    found = f" -a {fish_quoted(' '.join(word.choices))}" if word.choices else ""
    for kind in word.kinds:
        found += f" -a {fish_quoted('(' + NAMES[kind] + ' 2>/dev/null)')}" if kind in NAMES else ""
    return (files if FILES in word.kinds else alone) + found


def fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
