# bash completion for accelctl
# shellcheck disable=SC2046  # lists of words
# accelerd: made by python -m accelerd.paper; installed and removed by packaging/install and uninstall

# Values below: "=x" is the word x, the others name what is looked for. A path is what was typed before: "toolbox pin".
_accelctl_commands() {
  case $1 in
    '') echo 'status models load unload yield resume reset monitor logs explain chat add remove tune toolbox config reload memory fit devices doctor version' ;;
    'toolbox') echo 'list refresh pin unpin' ;;
    'config') echo 'check show schema' ;;
    'memory') echo 'learned forget' ;;
  esac
}

_accelctl_options() {
  case $1 in
    '') echo '-h --help --json --socket --version' ;;
    'status') echo '-h --help --json --socket' ;;
    'models') echo '-h --help --json --socket --names' ;;
    'load') echo '-h --help --json --socket' ;;
    'unload') echo '-h --help --json --socket --force' ;;
    'yield') echo '-h --help --json --socket --for --until --now --all' ;;
    'resume') echo '-h --help --json --socket' ;;
    'reset') echo '-h --help --json --socket' ;;
    'monitor') echo '-h --help --json --socket' ;;
    'logs') echo '-h --help --json --socket -f --follow -n --lines' ;;
    'explain') echo '-h --help --json --socket' ;;
    'chat') echo '-h --help --json --socket --system --max-tokens --temperature' ;;
    'add') echo '-h --help --json --socket --name --alias --context --parallel --memory --idle-timeout --preload --pin --embeddings --no-pull --replace --dry-run' ;;
    'remove') echo '-h --help --json --socket' ;;
    'tune') echo '-h --help --json --socket --quick --force --yes --no' ;;
    'toolbox') echo '-h --help --json --socket' ;;
    'toolbox list') echo '-h --help --json --known --names' ;;
    'toolbox refresh') echo '-h --help --json --force' ;;
    'toolbox pin') echo '-h --help --json' ;;
    'toolbox unpin') echo '-h --help --json' ;;
    'config') echo '-h --help --json --socket' ;;
    'config check') echo '-h --help --json' ;;
    'config show') echo '-h --help --json' ;;
    'config schema') echo '-h --help --json' ;;
    'reload') echo '-h --help --json --socket' ;;
    'memory') echo '-h --help --json --socket --watch' ;;
    'memory learned') echo '-h --help --json' ;;
    'memory forget') echo '-h --help --json --all' ;;
    'fit') echo '-h --help --json --socket --ctx --kv --parallel --gpu' ;;
    'devices') echo '-h --help --json --socket --watch' ;;
    'doctor') echo '-h --help --json --socket --devices' ;;
    'version') echo '-h --help --json --socket' ;;
  esac
}

# _accelctl_value PATH OPTION: where the value of an option comes from; fails where it takes none.
_accelctl_value() {
  case "$1 $2" in
    ' --socket') echo 'files' ;;
    'status --socket') echo 'files' ;;
    'models --socket') echo 'files' ;;
    'load --socket') echo 'files' ;;
    'unload --socket') echo 'files' ;;
    'yield --socket') echo 'files' ;;
    'yield --for') echo '' ;;
    'yield --until') echo '' ;;
    'resume --socket') echo 'files' ;;
    'reset --socket') echo 'files' ;;
    'monitor --socket') echo 'files' ;;
    'logs --socket') echo 'files' ;;
    'logs -n' | 'logs --lines') echo '' ;;
    'explain --socket') echo 'files' ;;
    'chat --socket') echo 'files' ;;
    'chat --system') echo '' ;;
    'chat --max-tokens') echo '' ;;
    'chat --temperature') echo '' ;;
    'add --socket') echo 'files' ;;
    'add --name') echo '' ;;
    'add --alias') echo '' ;;
    'add --context') echo '' ;;
    'add --parallel') echo '' ;;
    'add --memory') echo '' ;;
    'add --idle-timeout') echo '' ;;
    'remove --socket') echo 'files' ;;
    'tune --socket') echo 'files' ;;
    'toolbox --socket') echo 'files' ;;
    'config --socket') echo 'files' ;;
    'reload --socket') echo 'files' ;;
    'memory --socket') echo 'files' ;;
    'fit --socket') echo 'files' ;;
    'fit --ctx') echo '' ;;
    'fit --kv') echo '=f32 =f16 =bf16 =q8_0 =q5_1 =q5_0 =q4_1 =q4_0 =iq4_nl' ;;
    'fit --parallel') echo '' ;;
    'fit --gpu') echo '' ;;
    'devices --socket') echo 'files' ;;
    'doctor --socket') echo 'files' ;;
    'version --socket') echo 'files' ;;
    *) return 1 ;;
  esac
}

# _accelctl_word PATH NUMBER: where the word in that place comes from.
_accelctl_word() {
  case "$1 $2" in
    'status 0') echo 'models' ;;
    'load 0') echo 'models' ;;
    'unload 0') echo 'models' ;;
    'reset 0') echo 'models' ;;
    'monitor 0') echo 'models' ;;
    'logs 0') echo 'models' ;;
    'explain 0') echo 'models' ;;
    'chat 0') echo 'models' ;;
    'add 0') echo 'files' ;;
    'remove 0') echo 'models' ;;
    'tune 0') echo 'models' ;;
    'toolbox refresh 0') echo 'toolboxes' ;;
    'toolbox pin 0') echo 'toolboxes' ;;
    'toolbox unpin 0') echo 'toolboxes' ;;
    'memory forget 0') echo 'models' ;;
    'fit 0') echo 'models files' ;;
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
